"""What can be had: on this machine, or from the hub."""

import http.server
import threading

import pytest
from huggingface_hub import constants

from llavit.evaluate.lmms.hub import hub_reachable, on_this_machine


@pytest.fixture
def endpoint(monkeypatch):
    """A server that answers HEAD with the status in the path of the endpoint."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield lambda status: monkeypatch.setattr(
        constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}/{status}"
    )
    server.shutdown()
    server.server_close()


def test_the_hub_is_reachable_where_it_answers(endpoint, monkeypatch):
    for status, reachable in ((200, True), (405, True), (503, False)):
        endpoint(status)
        assert hub_reachable() is reachable, status
    endpoint(200)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_reachable()


def test_the_hub_is_not_reachable_where_nothing_listens(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub_reachable(timeout=1)


def test_a_data_set_that_was_prepared_here_is_found(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="looks into the cache of `datasets`")
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path))
    assert not on_this_machine("lmms-lab-encoder/ChartQA")
    (tmp_path / "lmms-lab-encoder___chart_qa" / "default" / "0.0.0" / "abc").mkdir(parents=True)
    assert on_this_machine("lmms-lab-encoder/ChartQA")
    assert not on_this_machine("lmms-lab-encoder/POPE")
