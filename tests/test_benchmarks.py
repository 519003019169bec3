"""The arithmetic of the benchmarks by hand, and that the script runs; no time is asserted."""

from __future__ import annotations

import argparse
import http.server
import json
import math
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import answer, data, gemm, prefer, serve, train
from benchmarks.answerers import ANSWERERS
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.contenders.track import Job
from benchmarks.contenders.trl_sft import labels
from benchmarks.floor import Work, layer_shapes, linear_weights
from benchmarks.machine import hardware, slug
from benchmarks.table import (
    Session,
    efficiency,
    evaluations,
    markdown,
    paired_ratios,
    summary,
    unequal_losses,
)
from instil.data.collate import collate, collate_shared
from instil.records import Encoded
from tests.train.test_training import SPECS

ROWS = [Encoded((1, 2, 3, 4), (False, False, True, True)), Encoded((1, 2, 5, 6, 7), (False, False, False, True, True))]


def test_linear_weights_by_hand() -> None:
    """GPT-2: 3 heads of 4 and a width of 12; Llama: 4 heads and 2 of keys and values, 6 wide, gated MLP."""
    assert layer_shapes(SPECS["gpt2"]) == [(36, 12), (12, 12), (20, 12), (12, 20)]
    assert linear_weights(SPECS["gpt2"]) == (2 * (432 + 144 + 240 + 240), 17 * 12)
    assert layer_shapes(SPECS["llama"]) == [(48, 12), (12, 24), (40, 12), (12, 20)]


def test_work_of_a_batch_by_hand() -> None:
    """Two rows of 3 and 4 inputs begin alike for 2: 2 + 1 + 2 are computed; 2 and 2 targets, two at one position."""
    work = Work.of(SPECS["gpt2"], collate_shared(ROWS), parameters=1000)
    assert (work.tokens, work.rows, work.scored) == (7, 5, 4)
    everything = [Encoded(row.ids, (True,) * len(row.ids)) for row in ROWS]
    assert Work.of(SPECS["gpt2"], collate_shared(everything), 1000).scored == 5  # the last shared one predicts both


def test_the_floor_by_hand() -> None:
    work = Work(tokens=20, rows=10, scored=3, body=100, head=50, parameters=200)
    assert work.flops == 6 * (100 * 10 + 50 * 3)
    assert work.seconds(peak=6900.0, bandwidth=2800.0) == pytest.approx(1.0 + 2.0)
    assert work.seconds(peak=6900.0, bandwidth=2800.0, untied=True) == pytest.approx(1.0 + 2.5)


WORK = [Work(tokens=tokens, rows=10, scored=3, body=100, head=50, parameters=200) for tokens in (70, 60, 50)]


def session(name: str = "instil", number: int = 0, pace: float = 1.0, **changes: Any) -> Session:
    """Started at 100, its first step after 3 s and the others ``pace`` apart."""
    at = tuple(103.0 + pace * step for step in range(3))
    values = {"begin": 102.0, "at": at, "losses": (3.0, 2.0, 1.0), "end": {"peak_bytes": 2_000_000_000}}
    return Session(name, number, 100.0, **{**values, **changes})


def test_real_tokens_over_the_steps_that_count() -> None:
    assert session(pace=2.0).tokens_per_second(WORK, 1) == (60 + 50) / 4
    assert session(pace=2.0).tokens_per_second(WORK, 0) == (70 + 60 + 50) / 5
    assert session().first_step == 3.0
    cut = session(at=(103.0,), losses=(3.0,))  # ended in its warmup: what there is counts
    assert cut.tokens_per_second(WORK, 2) == 70
    assert session(at=(), losses=()).tokens_per_second(WORK, 1) is None
    assert session(pace=2.0).over_floor(WORK, 1, 6900.0, 2800.0, untied=False) == pytest.approx(4 / 6)


def test_ratios_are_taken_within_a_round_and_their_median_is_reported() -> None:
    ours = [session(number=number, pace=pace) for number, pace in enumerate((1.0, 2.0, 1.0))]
    theirs = [session("TRL, tuned", number, pace) for number, pace in enumerate((3.0, 4.0, 5.0))]
    assert paired_ratios(ours, theirs, WORK, 1) == pytest.approx([3.0, 2.0, 5.0])
    kinds = [one for one in CONTENDERS if one.name in ("instil", "TRL, tuned")]
    rows = {
        row["contender"]: row for row in summary(kinds, [*ours, *theirs], WORK, 1, {"sgemm_best": 1, "bandwidth": 1})
    }
    assert rows["TRL, tuned"]["instil_times_as_fast"] == pytest.approx(3.0)
    assert rows["TRL, tuned"]["range"] == pytest.approx([2.0, 5.0])
    assert rows["instil"]["instil_times_as_fast"] == 1.0
    assert rows["instil"]["tokens_per_second"] == 55.0
    assert rows["instil"]["peak_gb"] == 2.0
    assert rows["instil"]["over_floor_fma"] is None  # there was no C compiler
    lines = markdown(list(rows.values())).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| instil | 3 | 55.00 | 1.00 | 1.00 to 1.00 | 1.00 | 2.00 | 3.00 | - |")


def test_the_ratio_of_equal_mathematics_is_to_the_counterpart() -> None:
    sessions = [session(), session("instil, untied head", pace=2.0), session("the book's code", pace=8.0)]
    rows = {row["contender"]: row for row in summary(CONTENDERS, sessions, WORK, 1, {"bandwidth": 1})}
    assert rows["the book's code"]["instil_times_as_fast"] == pytest.approx(8.0)
    assert rows["the book's code"]["same_mathematics_times_as_fast"] == pytest.approx(4.0)


def test_what_share_of_the_peaks_is_reached() -> None:
    reached = efficiency([session(pace=2.0)], WORK, 1, {"fma": 6900.0, "sgemm_best": 3450.0}, shapes=1.0)
    assert reached["of_fma"] == pytest.approx(0.5)
    assert reached["of_sgemm"] == pytest.approx(1.0)
    assert reached["of_best_at_shapes"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "losses", "told"),
    [
        ("TRL, tuned", (3.0, 2.0, 1.0), 0),
        ("TRL, tuned", (3.0001, 2.0001, 1.00005), 0),
        ("TRL, tuned", (3.0, 2.001, 1.0), 1),
        ("TRL, tuned", (3.0, 2.0, math.nan), 1),
        ("the book's code", (3.001, 2.0, 1.0), 1),  # all begin from the same weights
        ("the book's code", (3.0, 2.5, 1.5), 0),  # but a head of one's own learns otherwise
        ("TRL, as shipped", (9.0, 9.0, 9.0), 0),  # bfloat16 is not claimed to be equal
    ],
)
def test_losses_that_must_be_equal(name: str, losses: tuple[float, ...], told: int) -> None:
    assert len(unequal_losses([session(), session(name, losses=losses)], CONTENDERS)) == told


@pytest.mark.parametrize(
    ("name", "loss", "told"),
    [("TRL, tuned", 2.0001, 0), ("TRL, tuned", 2.01, 1), ("the book's code", 2.5, 0), ("TRL, as shipped", 9.0, 0)],
)
def test_passes_without_gradients_that_must_be_equal(name: str, loss: float, told: int) -> None:
    ours, theirs = session(evaluated=(2.0, 3.0)), session(name, evaluated=(loss, 12.0))
    assert len(unequal_losses([ours, session("instil, bf16"), theirs], CONTENDERS, passes=True)) == told
    assert unequal_losses([ours, theirs], CONTENDERS) == []
    taken = [one for one in CONTENDERS if one.name in ("instil", name)]
    rows = summary(taken, [ours, theirs], WORK, 1, {"sgemm_best": 1e9, "bandwidth": 1e9})
    assert [row["evaluation_instil_times_as_fast"] for row in rows] == [1.0, 4.0]
    assert f"| {name} | {loss:.5g} | 12.00 | 4.00 |" in evaluations(rows)
    assert train._alike([[([1, 2], [False, True])], [([3, 4, 5], [True, False, True])]])
    assert not train._alike([[([1, 2], [False, True]), ([3, 4, 5], [True, True, True])]])


def job(rows: list[Encoded]) -> Job:
    steps = [[(list(row.ids), list(row.trained)) for row in rows]]
    return Job("gpt2", Path(), steps, len(rows), 1024, 0, 1e-4, 0.1, Path(), {})


def test_peers_get_the_batch_that_instil_pads() -> None:
    batch = collate(ROWS, pad_id=0)
    inputs, targets = job(ROWS).padded(0)
    assert inputs.tolist() == batch.inputs.tolist()
    assert targets.tolist() == batch.targets.tolist()


def test_labels_count_what_is_predicted() -> None:
    assert labels([5, 6, 7], [True, True, True]) == [-100, 6, 7]
    assert labels([5, 6, 7], [False, False, True]) == [-100, -100, 7]


def test_every_counterpart_is_ours_and_computes_the_same() -> None:
    by_name: dict[str, Contender] = {one.name: one for one in CONTENDERS}
    for one in CONTENDERS:
        other = by_name[one.counterpart]
        assert other.ours
        assert one.mathematics in ("", other.mathematics)
        assert set(one.models) <= set(other.models)


@pytest.mark.parametrize("backend", gemm.BACKENDS)
def test_every_product_is_the_product(backend: str) -> None:
    import torch

    torch.manual_seed(3)
    try:
        found = {form: torch.as_tensor(work()) for form, work in gemm.products(backend, 5, 7, 3).items()}
    except LookupError as error:
        pytest.skip(str(error))
    torch.manual_seed(3)
    wanted = {form: torch.as_tensor(work()) for form, work in gemm.products("torch", 5, 7, 3).items()}
    assert {form: tuple(value.shape) for form, value in found.items()} == {"NT": (5, 7), "NN": (5, 3), "TN": (7, 3)}
    torch.testing.assert_close(found, wanted)


def test_hardware_names_no_machine() -> None:
    import platform

    told = hardware()
    assert told["cores"] >= 1
    assert slug({"cpu": "Some CPU(R) 9", "cores": 1}) == "some-cpu-r-9-1-core"
    assert slug({"cpu": "Some CPU(R) 9", "cores": 2}) == "some-cpu-r-9-2-cores"
    assert platform.node() not in json.dumps(told).split('"')


def test_warmup_must_leave_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parsed(["--steps", "2", "--warmup", "2"])
    assert "leaves none of 2 steps" in capsys.readouterr().err


def test_the_better_of_two_measurements_of_a_peak() -> None:
    def told(fma: float | None, sgemm: float, seconds: float) -> dict[str, Any]:
        peaks = {"fma": fma, "sgemm_best": sgemm, "bandwidth": 5.0, "sgemm": {"torch": sgemm}}
        return {"peaks": peaks, "shapes": {"case": {"seconds": seconds}}}

    best = train.best_of(told(None, 3.0, 2.0), told(None, 4.0, 1.0))
    assert best == told(None, 4.0, 1.0)
    assert train.best_of(told(7.0, 3.0, 1.0), told(6.0, 4.0, 2.0)) == told(7.0, 4.0, 1.0)


def test_one_that_takes_too_long_is_ended_and_its_steps_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dawdler.py").write_text(
        "import json, time\n"
        "for event in ({'event': 'begin', 'at': 1.0}, {'event': 'step', 'loss': 3.5, 'at': 2.0}):\n"
        "    print('BENCH', json.dumps(event), flush=True)\n"
        "time.sleep(600)\n"
    )
    (tmp_path / "benchmarks" / "contenders").mkdir(parents=True)
    (tmp_path / "dawdler.py").rename(tmp_path / "benchmarks" / "contenders" / "dawdler.py")
    monkeypatch.setattr(train, "ROOT", tmp_path)
    asked = train.parsed(["--work", str(tmp_path), "--limit", "2"])
    one = train.run(Contender("slow", "dawdler", "", ("gpt2",), "", "slow"), tmp_path / "job.json", 0, asked)
    assert (one.begin, one.at, one.losses, one.failure) == (1.0, (2.0,), (3.5,), "ended after 2 s")


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny model, instil alone: every figure is there, losses agree, and nothing names this machine."""
    asked = ["--tiny", "--contenders", "instil", "instil, padded", "--cases", "gpt2-response", "--rounds", "1"]
    asked += [
        "--evaluate",
        "--steps",
        "3",
        "--warmup",
        "1",
        "--batch",
        "4",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path),
    ]
    assert train.main(asked) == 0
    capsys.readouterr()
    text = next(tmp_path.glob("*.json")).read_text(encoding="utf-8")
    case = json.loads(text)["cases"]["gpt2-response"]
    assert [row["contender"] for row in case["rows"]] == ["instil", "instil, padded"]
    for row in case["rows"]:
        assert len(row["losses"]) == 3
        assert row["tokens_per_second"] > 0
        assert row["peak_gb"] > 0
        assert row["first_step_seconds"] > 0
        assert row["over_floor_sgemm"] > 0
        assert row["evaluation_seconds"] > 0 and row["evaluation_instil_times_as_fast"] > 0
        assert row["evaluation_loss"] == pytest.approx(case["rows"][0]["evaluation_loss"], rel=1e-5)
    assert case["unequal_losses"] == []
    assert str(tmp_path) not in text
    assert sys.prefix not in text
    assert "## gpt2-response" in next(tmp_path.glob("*.md")).read_text(encoding="utf-8")


def said(name: str, number: int, seconds: float, ids: list[list[int]]) -> answer.Said:
    return answer.Said(name, number, loaded=2.0, first=0.1, seconds=seconds, ids=ids, end={"peak_bytes": 10**9})


def test_answers_are_compared_within_a_round_and_token_by_token() -> None:
    ours = [[1, 2, 3], [4, 5], [6]]
    rounds = [said("instil", 0, 1.0, ours), said("instil", 1, 3.0, ours), said("instil", 2, 1.0, ours)]
    other = [[1, 2, 9], [4, 5]]  # a slow one is asked less
    rounds += [said("the book's generate", number, seconds, other) for number, seconds in enumerate((4.0, 6.0, 8.0))]
    rows = {
        row["answerer"]: row
        for row in answer.summary([one for one in ANSWERERS if one.ours or one.module == "book"], rounds)
    }
    theirs = rows["the book's generate"]
    assert rows["instil"]["answers_per_second"] == 3.0
    assert rows["instil"]["instil_times_as_fast"] == 1.0
    assert theirs["instil_times_as_fast"] == pytest.approx(6.0)  # 3 / 0.5, 1 / 0.33, 3 / 0.25
    assert theirs["range"] == pytest.approx([3.0, 12.0])
    assert theirs["same_answers"] == 0.5
    assert theirs["same_tokens"] == pytest.approx(4 / 5)
    assert "| instil | 3 | 6 | 3.00 | 1.00 |" in answer.table(list(rows.values()))


def test_answers_in_bfloat16_are_compared_with_ours_in_it_too() -> None:
    taken = [one for one in ANSWERERS if one.name in ("instil", "instil bf16", "vLLM bf16")]
    rounds = [said("instil", 0, 1.0, [[1]]), said("instil bf16", 0, 0.5, [[1]]), said("vLLM bf16", 0, 0.4, [[1]])]
    found = {row["answerer"]: row for row in answer.summary(taken, rounds)}
    assert found["vLLM bf16"]["instil_times_as_fast"] == pytest.approx(0.4)
    assert found["vLLM bf16"]["same_mathematics_times_as_fast"] == pytest.approx(0.8)
    assert found["instil bf16"]["same_mathematics_times_as_fast"] == pytest.approx(0.5)


def test_an_answerer_that_fails_is_told_of() -> None:
    row = answer.summary(ANSWERERS[:1], [answer.Said("instil", 0, failure="exit 1: gone")])[0]
    assert row["failures"] == ["exit 1: gone"]
    assert row["answers_per_second"] is None
    assert "| instil | 0 | 0 | - | - | - |" in answer.table([row])


@pytest.mark.slow
def test_answering_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--tiny", "--answerers", "instil", "--cases", "gpt2", "--rounds", "2", "--rows", "5"]
    assert answer.main([*asked, "--work", str(tmp_path / "work"), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    text = next(tmp_path.glob("*.json")).read_text(encoding="utf-8")
    (row,) = json.loads(text)["cases"]["gpt2"]["rows"]
    assert (row["prompts"], row["new_tokens"], row["same_answers"]) == (5, 80, 1.0)
    assert min(row["answers_per_second"], row["loaded_s"], row["first_token_s"], row["peak_gb"]) > 0
    assert str(tmp_path) not in text


def test_preference_ratios_by_hand() -> None:
    """Ours takes 3 s from the beginning and theirs 9; in the steps that count, 2 and 6."""
    asked = argparse.Namespace(batch=8, steps=3, warmup=1)
    sessions = [session("instil"), session("TRL, tuned", begin=96.0, at=(99.0, 102.0, 105.0))]
    ours, theirs = prefer.rows_of(sessions, asked)
    assert (ours["whole_seconds"], ours["pairs_per_second"]) == (3.0, 8.0)
    assert (theirs["whole_ratios"], theirs["steps_ratios"]) == ([3.0], [3.0])
    assert "3.00x (3.00 to 3.00)" in prefer.table([ours, theirs])
    assert prefer.unequal(sessions) == []
    assert prefer.unequal([*sessions, session("instil, padded", losses=(3.0, 2.5, 1.0))]) == [
        "step 2: instil, padded 2.5, others 2"
    ]


@pytest.mark.slow
def test_preference_tuning_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--contenders", "instil", "instil, padded", "instil, LoRA", "TRL, tuned", "TRL, precomputed"]
    more = ["--rounds", "1", "--steps", "2", "--warmup", "1", "--work", str(tmp_path), "--out", str(tmp_path)]
    assert prefer.main(["--tiny", *chosen, *more]) == 0
    assert "TRL, precomputed" in capsys.readouterr().out


def test_pairs_with_long_beginnings_in_common_have_a_prompt_and_two_answers_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [
        "--contenders",
        "instil",
        "instil, padded",
        "--rounds",
        "1",
        "--steps",
        "2",
        "--warmup",
        "1",
        "--batch",
        "3",
    ]
    where = ["--tiny", "--work", str(tmp_path), "--out", str(tmp_path)]
    assert prefer.main([*chosen, *where, "--data", "prefix:20,5"]) == 0
    assert "Losses of the same mathematics are equal" in capsys.readouterr().out
    (told,) = tmp_path.glob("*-prefer-*-prefix-20-5-tiny.json")
    assert [one["contender"] for one in json.loads(told.read_text())["models"]["gpt2"]["rows"]] == chosen[1:3]
    (job,) = tmp_path.glob("job-gpt2-pairs-tiny.json")
    step = json.loads(job.read_text())["steps"][0]
    assert [len(ids) for ids, _ in step] == [25] * 6
    assert len({tuple(ids[:20]) for ids, _ in step}) == 1
    assert len({tuple(ids[20:]) for ids, _ in step}) == 6
    with pytest.raises(SystemExit):
        prefer.main([*where, "--data", "prompts:2,20,5"])
    assert "two answers to one prompt" in capsys.readouterr().err


def test_rows_to_ids_are_measured(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of which no two are alike, through a store to the first batch, and from a file to the first step."""
    monkeypatch.setenv("INSTIL_HOME", str(tmp_path))
    assert len({row.instruction for row in data.joined(3000)}) == 3000
    stages = {name: {"rows": 60, **one(60, "varied", str(tiny_folder))} for name, one in data.STAGES.items()}
    read = data.from_file(60, str(tiny_folder))
    assert all(value >= 0 for one in (*stages.values(), read) for value in one.values())
    assert data.markdown([stages["store"]]).splitlines()[0].startswith("| rows | store_s | encode_s |")


@pytest.mark.parametrize("kind", data.KINDS)
def test_made_rows_are_the_same_each_time_and_as_many_as_wanted(kind: str) -> None:
    made = list(data.KINDS[kind](300))
    assert made == list(data.KINDS[kind](300))
    assert [row.row for row in made] == list(range(300))
    assert 280 < len({row.instruction for row in made}) <= 300
    if kind == "preambles":
        assert len({row.instruction.split("\n\n")[0] for row in made}) == 20


class _Models(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *told: object) -> None:
        pass


def test_the_list_of_models_is_asked_for_from_another_process() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with serve.looking(f"http://127.0.0.1:{server.server_address[1]}") as seconds:
            assert not seconds
        server.shutdown()
    assert seconds
    assert all(0 < one < 10 for one in seconds)
