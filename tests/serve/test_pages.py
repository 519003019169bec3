"""The pages' server side: headers, what is given out and what is not, and what people's verdicts become."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi.testclient import TestClient

from instil.data.sources import read_source
from instil.serve import reports
from instil.serve.pages import OPEN, POLICY, page_routes
from instil.tasks.pairs.source import read_pairs
from tests.runs.test_listing import begun, line
from tests.serve.stand_in import app_of, models_of, serving

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "4"}]
UP = {"kind": "up", "messages": ANSWERED}
DOWN = {"kind": "down", "messages": [*ASKED, {"role": "assistant", "content": "5"}]}
BETTER = {"kind": "better", "prompt": ASKED, "chosen": "4", "rejected": "5"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two runs with reports, and something beside them that nobody must see."""
    for name in ("one", "a sweep/two & 3%"):
        begun(tmp_path / "runs" / name).report.write_text(f"<h1>{name}</h1>")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "report.html").write_text("nobody must see it")
    return tmp_path / "runs"


@pytest.fixture
def client(tmp_path: Path, root: Path) -> TestClient:
    return TestClient(app_of(tmp_path, root, root / "one"))


def test_every_file_of_the_pages_has_its_type_and_the_policy(client: TestClient) -> None:
    html = client.get("/").text + client.get("/runs").text
    names = set(re.findall(r'(?:src|href)="(/page/[^"]+)"', html))
    for path in list(names):
        if path.endswith(".js"):
            names |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', client.get(path).text)}
    assert len(names) >= 9
    wanted = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for path in ["/", "/runs", *sorted(names)]:
        reply = client.get(path)
        assert reply.status_code == 200, path
        assert reply.headers["content-type"].startswith(wanted.get(path.rpartition(".")[2], "text/html")), path
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": f'"other", W/{reply.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == POLICY
        assert client.head(path).status_code == 200
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY


def test_the_pages_have_nothing_in_line_and_name_no_other_host(client: TestClient) -> None:
    for path in ("/", "/runs"):
        html = client.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", html), path
    for name in ("chat", "runs", "dom", "markdown", "api", "answers", "chart", "talk"):
        script = client.get(f"/page/{name}.js").text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage", script), (
            name
        )


@pytest.mark.parametrize(
    "path",
    [
        "/page/../pages.py",
        "/page/..%2Fpages.py",
        "/page/%2e%2e/models.py",
        "/page/nothing.js",
        "/page/",
        "/page/index.html",
    ],
)
def test_nothing_else_of_the_package_is_given_out(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_what_the_chat_says_of_the_models(client: TestClient, tmp_path: Path) -> None:
    about = client.get("/page.json").json()
    tuned, base = about["models"]["mine"], about["models"]["mine:base"]
    assert (tuned["run"], tuned["report"], tuned["data"], tuned["context"]) == ("one", True, "rows.json", 2048)
    assert (base["base_of"], base["max_tokens"], base["run"]) == ("mine", 256, "one")
    assert about["feedback"] == str(tmp_path)


def test_only_what_holds_no_secret_is_open(client: TestClient) -> None:
    """A guard lets these through without a key; so each must be a page, or be opened by a ticket of its own."""
    assert set(OPEN) == {"/", "/runs", "/docs", "/page/", "/opened/"}
    assert client.get("/opened/guessed").status_code == 404


# Feedback.


def test_what_people_say_is_read_again_by_the_projects_own_readers(client: TestClient, tmp_path: Path) -> None:
    said = client.post("/feedback", json=UP).json()
    assert said["files"] == ["kept.jsonl", "labelled.jsonl"]
    assert said["written"] == [str(tmp_path / name) for name in said["files"]]
    assert client.post("/feedback", json=DOWN).json()["files"] == ["labelled.jsonl"]
    assert client.post("/feedback", json=BETTER).json()["files"] == ["pairs.jsonl"]
    (example,) = read_source(str(tmp_path / "kept.jsonl")).examples
    assert (example.instruction, example.output, example.history[0].content) == ("2 + 2?", "4", "Be brief.")
    for name in ("pairs.jsonl", "labelled.jsonl"):
        (pair,) = read_pairs(str(tmp_path / name)).pairs
        assert (pair.chosen, pair.rejected) == ("4", "5"), name


def test_rows_of_many_at_once_are_whole(tmp_path: Path, client: TestClient) -> None:
    def post(number: int) -> int:
        messages = [{"role": "user", "content": "q" * 5000}, {"role": "assistant", "content": f"{number} " * 5000}]
        return client.post("/feedback", json={"kind": "down", "messages": messages}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(post, range(40))) == {200}
    rows = [json.loads(row) for row in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert sorted(int(row["messages"][1]["content"].split()[0]) for row in rows) == list(range(40))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "unable to extract tag"),
        ({"kind": "sideways"}, "does not match any of the expected tags"),
        ({**UP, "more": 1}, "up.more: extra inputs are not permitted"),
        ({**UP, "messages": []}, "up.messages: list should have at least 1 item"),
        ({**UP, "messages": ANSWERED * 200}, "at most 400 items"),
        ({**UP, "messages": ASKED}, "the last of messages is the user's"),
        ({**UP, "messages": ANSWERED[:1] + ANSWERED[2:]}, "no message of a user|the assistant's"),
        ({**UP, "messages": [*ASKED, {"role": "assistant", "content": " \n"}]}, "content is empty"),
        ({**UP, "messages": [*ASKED, {"role": "assistant", "content": "\x00"}]}, "holds a NUL character"),
        ({**UP, "messages": [*ASKED, {"role": "tool", "content": "4"}]}, "input should be 'system', 'user' or"),
        ({**UP, "messages": [*ASKED, {"role": "assistant", "content": ["4"]}]}, "should be a valid string"),
        ({**BETTER, "prompt": ANSWERED}, "the last of messages is the assistant's"),
        ({**BETTER, "rejected": "4"}, "both answers are the same"),
        ({**BETTER, "rejected": "  "}, "rejected is empty"),
        ({**BETTER, "chosen": 4}, "better.chosen: input should be a valid string"),
        ({**BETTER, "chosen": "x" * 400_001}, "at most 400000 characters"),
    ],
)
def test_what_is_no_feedback_is_refused_in_words(
    client: TestClient, tmp_path: Path, body: dict[str, Any], says: str
) -> None:
    reply = client.post("/feedback", json=body)
    assert reply.status_code == 400
    assert re.search(says, reply.json()["detail"])
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (json.dumps(UP), "text/plain", 415),  # what a form of a foreign page may send
        (json.dumps(UP), "", 415),
        ("{", "application/json", 400),
        ('{"kind": "up", "messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", 400),
        ("[" * 100_000, "application/json", 400),
        (b"\xff\xfe", "application/json; charset=utf-8", 400),
        (b" " * 1_048_577, "application/json", 413),
    ],
)
def test_bodies_that_are_none(client: TestClient, content: str | bytes, kind: str, status: int) -> None:
    assert client.post("/feedback", content=content, headers={"Content-Type": kind}).status_code == status


def test_a_folder_that_cannot_be_written_is_the_servers_fault(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reply = TestClient(app_of(tmp_path / "file", root)).post("/feedback", json=UP)
    assert reply.status_code == 500
    assert "kept.jsonl: cannot be written: Not a directory" in reply.json()["detail"]


# Runs.


def test_the_list_of_runs(client: TestClient, root: Path) -> None:
    said = client.get("/runs.json").json()
    assert {run["name"]: (run["state"], run["served_as"], run["report"]) for run in said["runs"]} == {
        "one": ("running", "mine", True),
        "a sweep/two & 3%": ("running", None, True),
    }
    assert client.get(f"/runs/{quote('a sweep/two & 3%')}/curve").json()["val"] == [[0, 3.0]]


def test_a_served_run_is_listed_wherever_it_lies(tmp_path: Path, root: Path) -> None:
    elsewhere = begun(tmp_path / "elsewhere")
    elsewhere.report.write_text("<h1>mine</h1>")
    alone = TestClient(app_of(tmp_path, None, elsewhere.path))
    assert [run["name"] for run in alone.get("/runs.json").json()["runs"]] == ["mine"]
    assert alone.get("/runs/mine/report").text == "<h1>mine</h1>"
    begun(root / "mine")
    both = TestClient(app_of(tmp_path, root, elsewhere.path)).get("/runs.json").json()["runs"]
    assert {run["name"] for run in both} == {"one", "a sweep/two & 3%", "mine", "mine (served)"}


def test_a_report_is_shown_in_a_sandbox(client: TestClient) -> None:
    for name in ("one", "a sweep/two & 3%"):
        reply = client.get(f"/runs/{quote(name)}/report")
        assert (reply.status_code, reply.text) == (200, f"<h1>{name}</h1>")
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts; default-src 'none'")
        assert "allow-same-origin" not in policy
        assert "connect-src" not in policy
        assert reply.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "%2e%2e/secret", "..%2fsecret", "one/../../secret", "one/%2e%2e/%2e%2e/secret", "/etc", "%00",
        "link", "a sweep", "one/", "%5c..%5csecret", "none", ".", "..", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["report", "curve"])
def test_nothing_but_runs_is_reached(client: TestClient, root: Path, name: str, what: str) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    reply = client.get(f"/runs/{name}/{what}")
    assert reply.status_code == 404
    assert "nobody must see it" not in reply.text


def test_a_report_that_is_a_link_is_none(client: TestClient, root: Path) -> None:
    (root / "one" / "report.html").unlink()
    (root / "one" / "report.html").symlink_to(root.parent / "secret" / "report.html")
    reply = client.get("/runs/one/report")
    assert (reply.status_code, reply.json()["detail"]) == (
        404,
        "the run 'one' has no report yet; it is written at its end",
    )


def test_a_ticket_opens_one_report_for_a_while(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(app_of(tmp_path, root, key="k"))
    assert client.get("/runs/one/report").status_code == 401
    assert client.post("/runs/one/ticket").status_code == 401
    told = {"Authorization": "Bearer k"}
    url = client.post("/runs/one/ticket", headers=told).json()["url"]
    assert len(url) > 40
    reply = client.get(url)
    assert (reply.status_code, reply.text) == (200, "<h1>one</h1>")
    assert reply.headers["content-security-policy"].startswith("sandbox")
    assert client.post("/runs/none/ticket", headers=told).status_code == 404
    now = time.monotonic()
    monkeypatch.setattr(reports.time, "monotonic", lambda: now + reports.VALID + 1)
    assert client.get(url).status_code == 404


def test_tickets_are_not_kept_without_end(tmp_path: Path, root: Path) -> None:
    client = TestClient(app_of(tmp_path, root))
    urls = [client.post("/runs/one/ticket").json()["url"] for _ in range(reports.TICKETS + 1)]
    assert client.get(urls[0]).status_code == 404
    assert client.get(urls[-1]).status_code == 200


def test_changes_come_as_they_are_written_and_the_stream_ends_when_the_client_leaves(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "EVERY", 0.05)
    monkeypatch.setattr(reports, "LISTENERS", 2)
    with serving(app_of(tmp_path, root)) as url, httpx.Client(base_url=url, timeout=10) as client:

        def heard(stop: int) -> list[Any]:
            found = []
            with client.stream("GET", "/runs/events") as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                for text in stream.iter_lines():
                    if text == "event: hello":
                        with (root / "one" / "metrics.jsonl").open("a") as metrics:
                            metrics.write(line(5, train=2.5))
                    elif text.startswith("data: {") and text != "data: {}":
                        found.append(json.loads(text[6:]))
                    if len(found) == stop:
                        return found
            return found

        assert heard(1) == [{"kind": "metrics", "name": "one", "step": 5, "train": [[5, 2.5]], "val": []}]
        with client.stream("GET", "/runs/events"), client.stream("GET", "/runs/events"):
            full = client.get("/runs/events")
            assert (full.status_code, full.headers["retry-after"]) == (503, "10")
        for _ in range(100):  # who has left makes room
            with client.stream("GET", "/runs/events") as again:
                if again.status_code == 200:
                    return
            time.sleep(0.05)
        pytest.fail("those who left are still counted")


def test_a_server_that_stops_waits_for_no_listener(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "EVERY", 0.05)
    stopping: list[bool] = []
    app = app_of(tmp_path, root, stopping=lambda: bool(stopping))
    with serving(app) as url, httpx.stream("GET", f"{url}/runs/events", timeout=10) as stream:
        for text in stream.iter_lines():  # which ends, or the time does
            if text == "event: hello":
                stopping.append(True)


def test_routes_need_no_root(tmp_path: Path) -> None:
    assert page_routes(models_of(), tmp_path).routes
    assert TestClient(app_of(tmp_path)).get("/runs.json").json() == {"root": None, "runs": []}
