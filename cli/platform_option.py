"""``--platform``, the same everywhere."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ocikit.descriptor import Platform


class PlatformType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """``OS/ARCHITECTURE[/VARIANT]``."""

    name = "platform"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> "Platform":
        from ocikit.descriptor import Platform

        if isinstance(value, Platform):
            return value
        try:
            return Platform.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


ONE_OF_SEVERAL = click.option(
    "--platform", type=PlatformType(), metavar="OS/ARCH", help="Of images for several platforms, this one."
)
SEVERAL = click.option(
    "--platform",
    "platforms",
    type=PlatformType(),
    multiple=True,
    metavar="OS/ARCH",
    help="For this platform; may be repeated. Default: the project's platforms, else this host's.",
)
