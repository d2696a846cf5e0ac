"""Commands for scaling laws: fit, predict and compare."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from isoflop.choices import Axis, FinalRule, LossUnit, ParamCount
from isoflop.cli.options import app
from isoflop.errors import FitError

if TYPE_CHECKING:
    from isoflop.fitting.estimators.parabola import Status
    from isoflop.fitting.methods.parametric import HuberDelta

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command("fit", short_help="Fit scaling laws to a sweep's directory or a table of runs.")
def fit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A sweep's directory, a table of runs or loss logs, a logger's folder.",
        ),
    ],
    method: Annotated[
        str, typer.Option(metavar="M,...", help="Methods: isoflop, joint, parametric, envelope.")
    ] = "isoflop,joint,parametric",
    params: Annotated[str | None, typer.Option(metavar="COL", help="Column of parameters.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="COL", help="Column of training tokens.")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(metavar="COL", help="Column of the loss, several with commas, or all."),
    ] = None,
    flops: Annotated[
        str | None, typer.Option(metavar="COL", help="Column of training FLOPs, or 6ND.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="COL", help="Column of planned budgets.")
    ] = None,
    n: Annotated[
        ParamCount, typer.Option(help="Parameter count, for a sweep's directory.")
    ] = "total",
    axis: Annotated[Axis, typer.Option(help="Axis of the profiles.")] = "params",
    use: Annotated[
        str,
        typer.Option(help="Profiles that enter the laws of isoflop: statuses with commas, or all."),
    ] = "interior,shallow",
    huber_delta: Annotated[
        str,
        typer.Option(
            metavar="X",
            help="For the parametric law: adaptive, chinchilla (1e-3), inf or a number.",
        ),
    ] = "adaptive",
    drop_outliers: Annotated[
        float | None,
        typer.Option(metavar="X", help="Drop runs more than X robust sd from the parametric law."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, metavar="K", help="Resamples.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
    confidence: Annotated[float, typer.Option(help="Confidence of the intervals.")] = 0.95,
    loss_unit: Annotated[LossUnit, typer.Option(help="Unit of the loss column.")] = "nats",
    run: Annotated[
        str | None, typer.Option(metavar="COL", help="Loss logs: column of run names.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="COL", help="Loss logs: column of steps.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Loss logs: split to fit.")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Loss logs: a table of their runs.")
    ] = None,
    final: Annotated[FinalRule, typer.Option(help="Loss logs: rule of the final loss.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write fit.json and fit.npz to this folder, for `isoflop predict`."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Example: isoflop fit runs/pocket --loss loss_text

    Fit optimal model size and data as power laws of compute, by several methods side by side.
    Methods that cannot fit the runs are listed with the reason. SOURCE is a sweep's directory; a
    CSV, TSV, Parquet or JSONL table with one row per run, or many (loss logs); or a folder of such
    tables, of TensorBoard event files or of offline W&B runs. COL may have a factor: --params
    'millions*1e6'.
    """
    from isoflop.config.sweep_file import load_directory_sweep
    from isoflop.fitting.fitfile.write import fit_document, write_fit
    from isoflop.fitting.methods.fit_all import FitOptions
    from isoflop.fitting.study_fits import fit_study
    from isoflop.reporting.terminal.console import warn
    from isoflop.reporting.terminal.fit_text import print_fits
    from isoflop.runs.runs_table import write_runs

    if (Path(source) / "plan.parquet").exists():
        try:
            write_runs(Path(source))
        except OSError as problem:
            if problem.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise  # a read-only study of another user is fitted as it is
    options = FitOptions(
        axis=axis,
        n=n,
        columns={"params": params, "tokens": tokens, "flops": flops, "budget": budget},
        logs={"run": run, "step": step, "split": split, "beside": beside, "final": final},
        loss_unit=loss_unit,
        use="all" if use == "all" else cast("list[Status]", _names(use)),
        huber_delta=_parse_delta(huber_delta),
        drop_outliers=drop_outliers,
        bootstrap=bootstrap,
        seed=seed,
        confidence=confidence,
    )
    study = fit_study(source, _names(method), options, loss)
    parts: dict[str, Any] = {"sweep": load_directory_sweep(source), "more": study.document_keys()}
    # Before printing: a closed pipe ends the command.
    written = None if output is None else write_fit(output, study.fits, **parts)
    if as_json:
        print(json.dumps(fit_document(study.fits, **parts), indent=2, allow_nan=False))
    else:
        print_fits(study)
    sys.stdout.flush()
    print(f"read {study.fits[0].runs.reading}", file=sys.stderr)
    for reason in study.reasons():
        warn(reason)
    if written is not None:
        print(f"wrote {written}", file=sys.stderr)


@app.command(
    "predict", short_help="Predict model size, data and loss for a budget, and a run to train."
)
def predict(
    fit: Annotated[
        str,
        typer.Argument(
            metavar="FIT", help="A fit.json, its directory, or a known law: soda, chinchilla."
        ),
    ],
    flops: Annotated[
        list[str],
        typer.Option(
            metavar="C", help="Budget in training FLOPs; several with commas, or repeat the option."
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="SWEEP", help="A sweep file or shipped sweep whose models to choose from."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="M", help="Method whose optimum to train; default: the most certain."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Confidence of the intervals; default: the fit's.")
    ] = None,
    yaml: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the run as a sweep file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Example: isoflop predict runs/pocket/fit.json --flops 1e13 --yaml best.yaml

    Predict the best model and its data for a budget by each law of a fit, with two intervals: one
    that assumes the law, and one that includes its error beyond the runs. Also print near-optimal
    sizes, the cost of other sizes, and one run as a sweep file.
    """
    from isoflop.files import replace_file
    from isoflop.fitting.fitfile.read import load_fit
    from isoflop.fitting.prediction.predict import predict as predict_law
    from isoflop.reporting.terminal.console import warn
    from isoflop.reporting.terminal.fit_text import print_prediction
    from isoflop.text import flops_text

    budgets = [_parse_flops(text) for option in flops for text in option.split(",")]
    if yaml is not None and len(budgets) > 1:
        choices = ", ".join(flops_text(budget, 6) for budget in budgets)
        raise FitError(f"--yaml: a run has one budget; give --flops one of {choices}")
    law = load_fit(fit)
    predictions = [
        predict_law(law, budget, recipe=recipe, method=method, confidence=confidence)
        for budget in budgets
    ]
    if yaml is not None:  # before printing: a closed pipe ends the command
        text = predictions[0].yaml()
        with replace_file(yaml) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if as_json:
        document = {
            "schema": 1,
            "source": law.label,
            "predictions": [p.to_dict() for p in predictions],
        }
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        for index, prediction in enumerate(predictions):
            print(end="\n" if index else "")
            print_prediction(prediction)
    sys.stdout.flush()
    for note in dict.fromkeys(note for prediction in predictions for note in prediction.notes):
        warn(note)
    if yaml is not None:
        print(f"wrote {yaml}\nplan it: sweep-plan {yaml}", file=sys.stderr)


@app.command("compare", short_help="Compare fits and test whether they differ.")
def compare(
    fits: Annotated[
        list[str],
        typer.Argument(metavar="FIT ...", help="fit.json files, their directories, or known laws."),
    ],
    flops: Annotated[
        str | None,
        typer.Option(
            metavar="C", help="Budget to predict at; default: 10 x the largest common one."
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="M,...", help="Only these methods.")] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Confidence of the intervals and the tests.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Example: isoflop compare runs/text-5/fit.json runs/text-20/fit.json

    Compare exponents and predictions of several fits: methods, ablation arms, other data, published
    laws. Fits of different runs are tested for a difference; fits of the same runs are not, as they
    are not independent.
    """
    from isoflop.fitting.comparison import compare as compare_laws
    from isoflop.fitting.fitfile.read import laws_by_name, load_fit
    from isoflop.fitting.methods.fit_all import parse_methods
    from isoflop.reporting.terminal.console import warn
    from isoflop.reporting.terminal.fit_text import print_comparison, print_pairs

    files = [load_fit(fit) for fit in dict.fromkeys(fits)]
    laws = laws_by_name(files)
    if method is not None:
        methods = parse_methods(_names(method))
        laws = {name: law for name, law in laws.items() if law.method in methods}
    if not laws:
        raise FitError(f"--method: no fit is by {method}")
    comparison = compare_laws(laws, None if flops is None else _parse_flops(flops), confidence)
    if as_json:
        print(json.dumps({"schema": 1, **comparison.to_dict()}, indent=2, allow_nan=False))
    else:
        print_comparison(comparison)
        print_pairs(comparison)
    sys.stdout.flush()
    for note in dict.fromkeys(
        [*(note for file in files for note in file.notes), *comparison.notes]
    ):
        warn(note)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _parse_delta(text: str) -> HuberDelta:
    """Return Huber's delta: a number, or the name of a preset, which the fit checks."""
    try:
        return float(text)
    except ValueError:
        return cast("HuberDelta", text)


def _parse_flops(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FitError(
            f"--flops: expected a number of FLOPs such as 1.3e22, got {text!r}"
        ) from None
