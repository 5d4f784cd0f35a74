"""``lapstrake completion``: click's own completion, made easy to find."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print the completion script of SHELL.

    \b
    bash:  eval "$(lapstrake completion bash)"        # in ~/.bashrc
    zsh:   eval "$(lapstrake completion zsh)"         # in ~/.zshrc
    fish:  lapstrake completion fish > ~/.config/fish/completions/lapstrake.fish
    """
    from cli.main import root

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(found(root, {}, "lapstrake", "_LAPSTRAKE_COMPLETE").source())
