"""`pds-engine check`: a verdict from config.json alone, for people and for machines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from model_folder import Folder
from pds_engine import cli
from pds_engine.errors import EXIT_CONFIG, ConfigError
from pds_engine.verdict import judge
from typer.testing import CliRunner

runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def check(folder, *options: str) -> tuple[int, str]:
    """Status and output, for a folder without weights."""
    folder.weights.unlink(missing_ok=True)
    words = ["check", "--model", str(folder.path), "--max-model-len", "64", *options]
    done = runner.invoke(cli.app, words)
    return done.exit_code, done.stdout


def test_a_table_shows_what_each_rank_holds(folder):
    status, output = check(folder, "--pp", "2", "--tp", "2", "--kv-memory", "1MiB")
    assert status == 0
    *lines, head, first, second = [line.split() for line in output.splitlines()]
    assert [line[0] for line in lines] == [
        "model", "parameters", "weights", "kv", "longest", "served"
    ]  # fmt: skip
    assert lines[-1][:2] == ["served", "yes,"]
    names = ("STAGE", "RANKS", "LAYERS", "WORK", "WEIGHTS", "KV/TOKEN", "PAGE", "PAGES", "TOKENS")
    assert tuple(head) == names
    assert [" ".join(line) for line in (first, second)] == [
        "0 0-1 0 50.0% 3.36 KiB 32 0.50 KiB 2047 32752",
        "1 2-3 1 50.0% 3.39 KiB 32 0.50 KiB 2047 32752",
    ]


def test_machines_get_bytes(folder):
    status, output = check(folder, "--tp", "2", "--role", "decode", "--dtype", "float32", "--json")
    found = json.loads(output)
    assert status == 0
    assert found.pop("ranks") == [
        {
            "rank": rank,
            "stage": 0,
            "dp": 0,
            "tp": rank,
            "layers": [0, 2],
            "weights": 4
            * (2 * (2 * 16 + 32 * 16 + 16 * 16 + 3 * 12 * 16 + 3 * 8) + 2 * 20 * 16 + 16),
            "kv_bytes_per_token": 128,
            "page_bytes": 2048,
            "pages": 64 * 4,  # of use to 64 requests of 64 tokens
            "tokens": 64 * 64,
        }
        for rank in (0, 1)
    ]
    assert found == {
        "served": True,
        "architecture": "Qwen3ForCausalLM",
        "layers": 2,
        "parameters": 2 * 40 * 16 + 16 + 2 * (2 * 16 + 2 * 8 + 96 * 16 + 3 * 24 * 16),
        "parameters_of_a_token": found["parameters"],
        "max_position": 64,
        "quantised": None,
        "kv_bytes_per_token": 256,
        "longest": 64,
    }


@pytest.mark.parametrize(
    ("options", "says", "cure"),
    [
        (["--tp", "3"], "parallelism.tp 3 does not divide the model's 4 attention heads", "both"),
        (["--max-model-len", "65"], "max_model_len 65 is above the model's 64 positions", "≤ 64"),
        (["--set", "kv.pages=3"], "kv: 3 pages hold 48 tokens, max_model_len is 64", "kv.pages"),
        (
            ["--set", "scheduler.chunk_size=8"],
            "scheduler.chunk_size 8 is less than a page",
            "raise",
        ),
        (
            ["--memory", "1MiB", "--kv-memory", "1MiB"],
            "memory: rank 0 would hold",
            "parallelism.tp",
        ),
        (
            ["--memory", "50KiB"],
            "kv.memory_fraction: 0.5 of 50.00 KiB (--memory) is 25.00 KiB, of which rank 0 takes",
            "memory_fraction to 0.7",
        ),
    ],
)
def test_a_refusal_says_why_and_names_the_cure(folder, options, says, cure):
    status, output = check(folder, *options)
    assert status == EXIT_CONFIG
    [refused] = [line for line in output.splitlines() if line.startswith("served")]
    assert refused.startswith(f"served      no: {says}")
    status, output = check(folder, *options, "--json")
    found = json.loads(output)
    assert (status, found["served"]) == (EXIT_CONFIG, False)
    assert found["error"].startswith(says)
    assert cure in found["hint"]
    assert found["parameters"] > 0


def test_what_is_refused_by_its_config_has_no_figures(folder):
    folder.configure(architectures=["GptForCausalLM"])
    status, output = check(folder, "--json")
    found = json.loads(output)
    assert status == EXIT_CONFIG
    assert set(found) == {"served", "error", "hint"}
    assert "unknown architecture GptForCausalLM" in found["error"]


def test_an_ignored_key_is_named_once(folder, caplog):
    folder.configure(made_by="hand")
    judge(folder.engine())
    assert [record.getMessage() for record in caplog.records] == ["config.json: ignored made_by"]


def test_quantized_weights_are_named(folder):
    folder.configure(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert judge(folder.engine()).quantised == "fp8"
    assert "weights     stored as fp8, held as bfloat16" in check(folder)[1].splitlines()


@pytest.mark.parametrize(("text", "count"), [("16KiB", 16384), ("0.5GiB", 1 << 29), ("77", 77)])
def test_sizes_may_have_units(text, count):
    assert cli.size_in_bytes("--memory", text) == count


def test_a_size_that_is_none_is_refused(folder):
    done = runner.invoke(cli.app, ["check", "--model", str(folder.path), "--memory", "80GB"])
    assert "--memory 80GB: not a number of bytes" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--memory", "9" * 400], "not a number of bytes"),
        (["--set", "kv=3", "--set", "kv.pages=2"], "kv is a section, got 3"),
        (["--set", "kv.pages={"], "the value is not YAML"),
        (["--dp", "1000000"], "above the 524288 ranks"),
    ],
)
def test_nonsense_is_refused_by_its_name(folder, options, says):
    done = runner.invoke(cli.app, ["check", "--model", str(folder.path), *options])
    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)


def test_a_row_is_a_line(folder):
    lines = check(folder, "--kv-memory", "99999999999TiB")[1].splitlines()
    assert lines[-1].split()[0] == "0"
    assert "…" not in lines[-1]


def test_it_imports_no_torch(folder):
    code = (
        "import sys\n"
        "from pds_engine.cli import app\n"
        f"sys.argv = ['pds-engine', 'check', '--model', {str(folder.path)!r}, '--set',"
        " 'max_model_len=64']\n"
        "try:\n    app()\n"
        "except SystemExit as ended:\n    sys.exit(bool(ended.code) or 'torch' in sys.modules)\n"
        "sys.exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
