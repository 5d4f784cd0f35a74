import pytest

# the suites assert outside tests/; without this their failures would show no values
pytest.register_assert_rewrite("ocikit.testing", "content.testing", "registry_facade.testing")
