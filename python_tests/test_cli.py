# SPDX-License-Identifier: Apache-2.0
"""The command `zspa`: what it prints, its exit codes, and how it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from zspa_kernels import __version__, _doctor, methods
from zspa_kernels._ops import dispatch
from zspa_kernels.cli_app import app

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a few pictures."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.png")
    Image.fromarray(noise[:16, :31]).save("small.png")
    Image.fromarray(np.tile(noise[:8], (1, 11, 1))).save("thin.png")
    Path("text.png").write_text("not a picture")
    Path("folder.png").mkdir()
    return tmp_path


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_demo_prints_a_table_and_writes_the_picture(here: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "photo.png", "--keep", "0.5", "--out", "a [b].png"])
    assert result.exit_code == 0, result.output
    print(result.output)
    for text in (
        "photo.png: 96 x 64 pixels, 4 x 6 patches of 16 x 16 = 24 tokens",
        "not a VLM's",
        "4 of these tokens: the middle, pixels 32,21,64,43",
        "ZSPAPrune",
        "DivPrune",
        "All in relevance",
        "mean pairwise cosine",
        "plain PyTorch loop",
        "written  a [b].png",
    ):
        assert text in result.output
    assert max(map(len, result.output.splitlines()[4:-1])) <= 80
    with Image.open("a [b].png") as picture:
        assert picture.format == "PNG"


USAGE, FAILURE = 2, 1
SHARE_OR_COUNT = "a share in (0, 1] such as 0.1, or a count of at least 1"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("missing.png", FAILURE, "cannot read missing.png: No such file"),
        ("text.png", FAILURE, "cannot read text.png: not a picture"),
        ("folder.png", FAILURE, "cannot read folder.png: Is a directory"),
        ("small.png", FAILURE, "smaller than two patches of 16 x 16"),
        ("thin.png --patch 8", FAILURE, "more than 64:1 long"),
        ("photo.png --patch 64", FAILURE, "smaller than two patches of 64 x 64"),
        ("photo.png --patch 7", USAGE, "--patch must be from 8 to 256 pixels, got 7"),
        ("photo.png --patch 1000", USAGE, "--patch must be"),
        ("photo.png --region 1,2,3", USAGE, "--region must be four integers x0,y0,x1,y1"),
        ("photo.png --region 1,2,3,4,5", USAGE, "--region must be four integers"),
        ("photo.png --region a,b,c,d", USAGE, "--region must be four integers"),
        ("photo.png --region 0.5,0,9,9", USAGE, "--region must be four integers"),
        ("photo.png --region ''", USAGE, "--region must be four integers"),
        ("photo.png --region 10,10,10,20", USAGE, "is empty"),
        ("photo.png --region 10,20,20,10", USAGE, "is empty"),
        ("photo.png --region -1,0,10,10", USAGE, "is not within the picture, 0,0,96,64"),
        ("photo.png --region 0,0,97,64", USAGE, "is not within the picture, 0,0,96,64"),
        ("photo.png --keep 0", USAGE, f"--keep must be {SHARE_OR_COUNT}, got '0'"),
        ("photo.png --keep 1.01", USAGE, f"--keep must be {SHARE_OR_COUNT}, got '1.01'"),
        ("photo.png --keep nan", USAGE, f"--keep must be {SHARE_OR_COUNT}, got 'nan'"),
        ("photo.png --keep -3", USAGE, f"--keep must be {SHARE_OR_COUNT}, got '-3'"),
        ("photo.png --keep half", USAGE, f"--keep must be {SHARE_OR_COUNT}, got 'half'"),
        ("photo.png --core-ratio -0.1", USAGE, "--core-ratio must be in [0, 1], got -0.1"),
        ("photo.png --core-ratio 1.5", USAGE, "--core-ratio must be in [0, 1]"),
        ("photo.png --core-ratio nan", USAGE, "--core-ratio must be in [0, 1]"),
        ("photo.png --out kept.jpg", USAGE, "--out must end in .png"),
        ("photo.png --out photo.png", USAGE, "is the picture itself"),
        ("photo.png --out folder.png", FAILURE, "it exists and is not a file"),
        ("photo.png --out nowhere/kept.png", FAILURE, "cannot write nowhere/kept.png: No such"),
        ("photo.png --out text.png/kept.png", FAILURE, "Not a directory"),
        (f"photo.png --out {'x' * 300}.png", FAILURE, "File name too long"),
    ],
)
def test_bad_calls_get_one_line_and_write_nothing(
    here: Path, arguments: str, code: int, said: str
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in here.iterdir()}
    words = [word.strip("'") for word in arguments.split()]
    result = CliRunner().invoke(app, ["demo", *words])
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("zspa demo: ")
    assert "Error" not in line
    assert said in line
    assert {path.name: path.stat().st_mtime_ns for path in here.iterdir()} == before


@pytest.mark.parametrize(
    "arguments", [["demo", "--keep", "much"], ["demo", "--patch", "1.5"], ["paint"], ["demo", "-x"]]
)
def test_options_that_do_not_parse_are_usage_errors(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == USAGE


@pytest.mark.parametrize("name", ["skimage", "matplotlib"])
def test_demo_without_the_extra_says_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in [m for m in sys.modules if m.startswith("zspa_kernels.demo.")]:
        if module != "zspa_kernels.demo.errors":
            monkeypatch.delitem(sys.modules, module)
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(app, ["demo", "photo.png"])
    assert result.exit_code == FAILURE
    (line,) = result.stderr.splitlines()
    assert line.endswith('this command needs: pip install "zspa_kernels[demo]"')
    assert name in line
    assert not Path("kept.png").exists()


def test_methods_are_listed_with_what_they_need() -> None:
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    rows = dict(re.findall(r"^│ (\w+) +│ (.*?) *│", result.output, re.MULTILINE))
    assert tuple(rows) == methods.available()
    assert (rows["divprune"], rows["zspaprune"]) == ("", "(prompt)")
    assert rows["visionzip"] == "attention, (keys)"


@pytest.mark.parametrize("command", ["methods", "demo photo.png --keep 0.5"])
def test_a_narrow_terminal_is_shown_all(here: Path, command: str) -> None:
    result = CliRunner(env={"COLUMNS": "40"}).invoke(app, command.split())
    assert result.exit_code == 0, result.output
    table = [line for line in result.output.splitlines() if line.startswith("│")]
    assert table
    assert max(map(len, table)) <= 40
    assert "\N{HORIZONTAL ELLIPSIS}" not in result.output


def test_a_method_says_what_its_inputs_are() -> None:
    result = CliRunner().invoke(app, ["methods", "scope"])
    assert result.exit_code == 0, result.output
    facts = methods.about("scope")
    assert result.output.startswith("SCOPE, arXiv 2510.24214")
    for x in facts.inputs:
        optional = "" if x.required else ", optional"
        assert f"  {x.name} {x.shape}{optional}: {x.source}\n" in result.output
    failed = CliRunner().invoke(app, ["methods", "Scope"])
    assert (failed.exit_code, failed.stdout) == (USAGE, "")
    (line,) = failed.stderr.splitlines()
    assert (
        line == f"zspa methods: name must be one of {', '.join(methods.available())}, got 'Scope'"
    )


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"zspa_kernels {__version__}\n")


def test_doctor_json_has_every_backend_and_every_reason() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert list(facts) == [
        "zspa_kernels",
        "python",
        "os",
        "cpu",
        "torch",
        "packages",
        "environment",
        "native",
        "backends",
        "auto",
    ]
    assert facts["zspa_kernels"] == __version__
    assert facts["torch"]["version"] == torch.__version__
    assert facts["torch"]["threads"] == torch.get_num_threads()
    assert set(facts["cpu"]) == {
        "model",
        "architecture",
        "cores",
        "usable_cores",
        "instruction_sets",
    }
    assert set(facts["packages"]) == set(_doctor.PACKAGES)
    assert facts["packages"]["typer"]
    native = facts["native"]
    assert set(native) == (
        {"available", "isa", "isas", "build_info"}
        if native["available"]
        else {"available", "reason"}
    )
    assert set(facts["backends"]) == {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    for device, backends in facts["backends"].items():
        assert tuple(backends) == dispatch.BACKENDS
        for backend, reasons in backends.items():
            assert tuple(reasons) == dispatch.OPS
            for op, reason in reasons.items():
                assert reason == dispatch.why_not(backend, op, torch.device(device))
                assert reason is None or reason.strip()
    assert set(facts["backends"]["cpu"]["reference"].values()) == {None}
    native_runs = facts["backends"]["cpu"]["cpp"]["select"] is None
    assert facts["auto"]["cpu"]["select"] == ("cpp" if native_runs else "reference")


def test_doctor_text_names_every_backend_and_reason() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    print(result.output)
    for backend in dispatch.BACKENDS:
        reason = dispatch.why_not(backend, "select", torch.device("cpu"))
        assert f"  {backend}" in result.output
        assert reason is None or reason in result.output
    assert "reference  runs" in result.output


def test_doctor_tells_ops_apart_when_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def why_not(backend: str, op: str, device: torch.device) -> str | None:
        return "no such kernel" if (backend, op) == ("cpp", "diversity") else None

    monkeypatch.setattr(dispatch, "why_not", why_not)
    text = _doctor.report()
    assert "cpp        diversity: refused: no such kernel" in text
    others = ", ".join(op for op in dispatch.OPS if op != "diversity")
    assert f"cpp        {others}: runs" in text
    assert "triton     runs" in text


def test_command_as_a_process(here: Path) -> None:
    # Without the native module there would be a warning.
    done = _python("-Wignore", "-m", "zspa_kernels", "demo", "photo.png", "--out", "out.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "written  out.png" in done.stdout
    failed = _python("-m", "zspa_kernels.cli", "demo", "missing.png")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.count("\n") == 1
    assert not Path("kept.png").exists()


@pytest.mark.parametrize(
    ("command", "unbuffered", "code", "said"),
    [
        (
            "--version > /dev/full",
            "1",
            1,
            "zspa: cannot write the output: No space left on device\n",
        ),
        (
            "--version > /dev/full",
            "",
            1,
            "zspa: cannot write the output: No space left on device\n",
        ),
        ("methods | true", "", 1, ""),  # nobody reads on
        ("--version >&-", "", 0, ""),
    ],
)
def test_output_that_cannot_be_written(command: str, unbuffered: str, code: int, said: str) -> None:
    """Whether it fails at once or when the process ends."""
    shell = f"{sys.executable} -Wignore -m zspa_kernels {command}"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": unbuffered},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_reports_need_no_extra(name: str) -> None:
    block = f"import sys; sys.modules[{name!r}] = None; from zspa_kernels.cli import main; "
    program = (
        "import contextlib\n"
        "for words in (['doctor', '--json'], ['--version'], ['demo']):\n"
        "    sys.argv = ['zspa', *words]\n"
        "    try:\n        main()\n"
        "    except SystemExit as exit:\n        print('exit', exit.code, flush=True)\n"
    )
    done = _python("-c", block + "\n" + program)
    assert done.returncode == 0, done.stderr
    report, _, rest = done.stdout.partition("exit 0\n")
    assert json.loads(report)["zspa_kernels"] == __version__
    assert rest == f"zspa_kernels {__version__}\nexit 0\nexit 1\n"
    hint = 'this command needs: pip install "zspa_kernels[demo]"'
    others = "(`zspa doctor` and `zspa --version` do without)"
    assert done.stderr == f"zspa: {name} is not installed; {hint} {others}\n"
