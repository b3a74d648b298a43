"""What the workflow says before it does anything."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
import yaml


def test_every_target_is_planned_quickly(workflow):
    start = time.monotonic()
    status, out = workflow.run("-n", "all_tables")
    assert status == 0, out[-3000:]
    assert time.monotonic() - start < 10
    # 27 trainings and 2 frozen models of their own, and two sweeps of three trainings
    assert re.search(r"^train +29$", out, re.M), out[-3000:]
    assert len(set(re.findall(r"^(sweep_\w+) +1$", out, re.M))) == 2


@pytest.mark.parametrize("target", ["results/table4.csv", "results/lga/table4.csv", "lga_tables", "results/fig3.csv"])
def test_targets_exist(workflow, target):
    status, out = workflow.run("-n", target)
    assert status == 0, out[-3000:]


def test_paper_scale_is_planned_too(workflow):
    status, out = workflow.run("-n", "all_tables", "--config", "scale=paper")
    assert status == 0, out[-3000:]
    assert "pretrain_backbone" not in out and "generate_videos" not in out


def test_without_a_flag(repo):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "results/table4.csv"], cwd=repo, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/table44.csv"], "unknown table 'table44'; did you mean 'table4'?"),
        (["results/lgb/table4.csv"], "unknown paper 'lgb'; did you mean 'lga'?"),
        (["--config", "scale=dmo"], "unknown scale 'dmo'"),
        (["--config", "substitute={hmdb51: hmdb52}"], "unknown dataset 'hmdb52'"),
        (["--config", "train={lr: 1}", "scael=demo"], "unknown key 'scael'"),
        (["--config", "substitute_backbone={clip_vit_b16: clip_nan}"], "unknown backbone 'clip_nan'"),
        (
            ["--config", "tables={mine: {title: t, tables: {'1': {title: t, columns: [{name: c}], rows: [{name: r, "
             "experiment: {method: lgaa, dataset: hmdb51}}]}}}}"],
            "unknown method 'lgaa'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_name_is_one_line_with_the_nearest(workflow, arguments, message):
    status, out = workflow.run("-n", *arguments)
    assert status != 0
    assert message in out, out[-2000:]
    assert "Traceback (most recent call last)" not in out


def test_lint_is_clean(repo):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], cwd=repo, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    formatted = subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow/rules"], cwd=repo, capture_output=True
    )
    assert formatted.returncode == 0, formatted.stderr


def test_every_rule_has_log_benchmark_and_environment(repo):
    for path in (repo / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"(?m)^ *rule[ \w]*:", path.read_text())[1:]:
            for directive in ("log:", "benchmark:", "conda:"):
                assert directive in rule, (path.name, directive, rule[:80])


def test_environment_is_the_one_of_the_project(repo):
    content = yaml.safe_load((repo / "workflow" / "envs" / "pipeline.yaml").read_text())
    pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    assert pip == ["-c ../../constraints.txt", "-e ../.."]
    pins = dict(line.split("==") for line in (repo / "constraints.txt").read_text().split() if "==" in line)
    assert {"torch", "snakemake", "ray", "transformers", "pandas", "openai", "decord"} <= set(pins)
    assert "mmaction2==1.2.0" in (repo / "requirements-openmmlab.txt").read_text()
