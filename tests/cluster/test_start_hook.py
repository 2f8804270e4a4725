import os
from types import SimpleNamespace

import pytest

from han.cluster.start_hook import LARGE_REPLIES, configure


@pytest.mark.parametrize("own", [None, "500"])
def test_a_node_has_no_client_server_and_large_replies_unless_its_environment_has_another_size(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    (name,) = LARGE_REPLIES
    monkeypatch.setenv(name, own or "")
    if own is None:
        monkeypatch.delenv(name)
    params = SimpleNamespace(ray_client_server_port=10001)
    configure(params, head=True)
    assert params.ray_client_server_port is None
    assert os.environ[name] == (own or LARGE_REPLIES[name])
