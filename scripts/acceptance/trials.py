"""Whole training runs of the program: whether they repeat themselves, eagerly and resumed, and what a real one comes to."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
from typing import Callable

from . import ROOT, report
from .session import Failure, Outcome, Session, Skip, Unfinished


STEPS, STOP_AFTER = 12, 5
COMPARED = ("model.safetensors", "optimizer.safetensors")


def configuration(session: Session, family: str, dtype: str) -> dict:
    """Two micro-batches a step, dropout, heads of 64 channels: what the models of the papers use, in few layers."""
    width, layers, length = (32, 1, 16) if session.rehearsing else (256, 3, 128)
    heads = 2 if session.rehearsing else 4
    return {
        "model": {"model_type": family, "vocab_size": "auto", "hidden_size": width, "num_hidden_layers": layers,
                  "num_attention_heads": heads, "intermediate_size": 4 * width, "max_position_embeddings": length,
                  "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        "data": {"train": str(session.pack.tokens / "*_train_*.bin"), "sequence_length": length},
        "training": {"steps": STEPS, "global_batch_size": 8 if session.rehearsing else 32,
                     "micro_batch_size": 4 if session.rehearsing else 16, "seed": 1, "dtype": dtype},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"warmup_steps": 3},
        "evaluation": {"interval": 0},
        "checkpoint": {"interval": 0},
        "logging": {"interval": 1},
    }


def train(session: Session, config: dict, name: str, *options: str) -> pathlib.Path:
    """The folder of a run, whose former self is gone unless it goes on (--resume auto)."""
    run = session.work / name
    if "auto" not in options:
        shutil.rmtree(run, ignore_errors=True)
    file = session.work / f"{name}.json"
    file.write_text(json.dumps(config, indent=1))
    session.must_run([session.program("outeffhop"), "train", "--config", file, "--out", run, "--device", session.device, "--quiet",
                      *options], f"train_{name}{'_on' if 'auto' in options else ''}", 120)
    return run


def last_checkpoint(run: pathlib.Path) -> pathlib.Path:
    found = sorted(run.glob("checkpoints/step_*"))
    if not found:
        raise Failure(f"{run} has no checkpoint")
    return found[-1]


def metrics(run: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: pathlib.Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if "loss" in line]


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """What of two runs is not the same to the bit."""
    found = [] if losses(first) == losses(second) else ["losses"]
    for name in COMPARED:
        if (last_checkpoint(first) / name).read_bytes() != (last_checkpoint(second) / name).read_bytes():
            found.append(name)
    return found


def compare(session: Session, what: str, dtypes: tuple[str, ...], other: Callable[[dict, str, str], pathlib.Path]) -> Outcome:
    """`other`(config, name, begin) makes a run that has to have the bits of the ordinary one. Both begin from the checkpoint
    of a first step, with its plans of matrix products: a GPU that measured them twice could choose differently."""
    session.needs_device()
    rows = []
    for family in ("bert", "opt"):
        for dtype in dtypes:
            name = f"{family}_{dtype}"
            config = configuration(session, family, dtype)
            whole = session.work / f"{name}_whole"
            if not whole.exists():
                first = train(session, config, f"{name}_first", "--stop-after", "1")
                whole = train(session, config, f"{name}_whole", "--resume", str(last_checkpoint(first)))
            begin = str(last_checkpoint(session.work / f"{name}_first"))
            if len(losses(whole)) != STEPS - 1:
                raise Failure(f"{whole} logged {len(losses(whole))} steps, expected {STEPS - 1}")
            found = differences(whole, other(config, name, begin))
            rows.append([family, dtype, f"{losses(whole)[0]:.4f} to {losses(whole)[-1]:.4f}", ", ".join(found) or "the same bits"])
            if found:
                raise Failure(f"{family}, {dtype}: {what} differs in {', '.join(found)}")
    return Outcome(f"{what}: the same losses, weights and moments to the bit, {len(rows)} runs of {STEPS} steps", {"runs": rows},
                   report.table(["model", "storage", "loss", what], rows))


def identity(session: Session) -> Outcome:
    session.needs_device()
    for old in session.work.glob("*_whole"):  # of an earlier build
        shutil.rmtree(old)
    return compare(session, "a second run", ("bf16", "fp32"),
                   lambda config, name, begin: train(session, config, f"{name}_again", "--resume", begin))


def has_option(session: Session, option: str) -> bool:
    text = subprocess.run([session.program("outeffhop"), "train", "--help"], capture_output=True, text=True).stdout
    return option in text.split()


def eager(session: Session) -> Outcome:
    session.needs_device()
    if not has_option(session, "--eager"):
        raise Skip("this build has no option --eager: it records no graphs")
    return compare(session, "an eager run", ("bf16", "fp32"),
                   lambda config, name, begin: train(session, config, f"{name}_eager", "--resume", begin, "--eager"))


def resume(session: Session) -> Outcome:
    def parts(config: dict, name: str, begin: str) -> pathlib.Path:
        train(session, config, f"{name}_parts", "--resume", begin, "--stop-after", str(STOP_AFTER))
        return train(session, config, f"{name}_parts", "--resume", "auto")
    return compare(session, "a run that was stopped and resumed", ("bf16",), parts)


def pretraining(session: Session) -> Outcome:
    """configs/bert_mini.json on the packed text with softmax1 and with the ordinary softmax, and the outliers of both."""
    session.needs_device()
    steps, batch = (4, 4) if session.rehearsing else (2400, 64)
    small = ["--set", "model.hidden_size=32", "--set", "model.num_hidden_layers=1", "--set", "model.num_attention_heads=2"]
    rows, details, late = [], {}, []
    for softmax in ("softmax1", "vanilla"):
        run = session.work / f"pretraining_{softmax}"
        shutil.rmtree(run, ignore_errors=True)
        validation = session.pack.tokens / "*_val_*.bin"
        changes = {"model.attn_softmax": softmax, "training.steps": steps, "training.global_batch_size": batch,
                   "training.dtype": "bf16", "schedule.warmup_steps": max(1, steps // 12), "evaluation.interval": 0,
                   "checkpoint.interval": 0, "data.train": session.pack.tokens / "*_train_*.bin", "data.validation": validation,
                   "evaluation.batches": 2 if session.rehearsing else 50}
        options = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        if session.rehearsing:
            options += small
        program = session.program("outeffhop")
        try:
            session.must_run([program, "train", "--config", ROOT / "configs/bert_mini.json", "--out", run, "--device", session.device,
                              "--quiet", *options], f"pretraining_{softmax}")
            result = run / "evaluation.json"
            session.must_run([program, "eval", "--checkpoint", run, "--data", validation, "--device", session.device, "--outliers",
                              "--batches", "2" if session.rehearsing else "50", "--json", result], f"evaluation_{softmax}")
        except Unfinished as reason:
            late.append(f"{softmax}: {reason}")
            continue
        evaluation = json.loads(result.read_text())
        speeds = sorted(line["tokens_per_second"] for line in metrics(run) if "tokens_per_second" in line)
        details[softmax] = {"evaluation": evaluation, "tokens_per_second": speeds}
        rows.append([softmax, f"{losses(run)[-1]:.4f}", *figures(evaluation), f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-"])
    if late:
        raise Unfinished("; ".join(late))
    text = report.table(["softmax", "last training loss", "validation loss", "perplexity", "largest infinity norm", "average kurtosis",
                         "tokens/s"], rows)
    return Outcome(f"{steps} steps of configs/bert_mini.json with {' and '.join(details)}", details, text)


def figures(evaluation: dict) -> list[str]:
    """Loss, perplexity and outliers of what `outeffhop eval --outliers --json` wrote."""
    def text(*path: str) -> str:
        value = evaluation
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return f"{value:.4f}" if isinstance(value, (int, float)) else "-"
    return [text("loss"), text("perplexity"), text("outliers", "max_inf_norm"), text("outliers", "average_kurtosis")]
