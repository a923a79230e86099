"""The flags that say what a matrix is of, for the scripts that make and that search one: all from `measures.KINDS`."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from common.cli import add_common_flags, bounded, choice, positive_int, switch, whole_number
from common.matrix_files import DEFAULT_POOL, SAMPLE_FLAGS, MatrixSettings, pools
from measures import KINDS
from measures.table import Option

OPTIONS = {option.name: option for kind in KINDS.values() for option in kind.options}
SEARCHED = {"bs": "batch_size", "iter": "iter_num", "mode": "mode", "pool": "pool", "repeats": "repeats"}
SAMPLES = {
    "U": "a sample is a caption, as one vector",
    "T": "a sample is a token",
    "mean": "a sample is a caption, as one vector",
    "seq": "a sample is a caption, as the whole sequence of its tokens",
}
POOLS = {"mean": "the mean of its tokens", "eos": "its end token's, which CLIP reads out"}
PRECISIONS = {
    "float32": "within 1e-7 of float64 in a matrix",
    "float64": "three times as slow, the same to 1e-9 on every machine",
}


def add_option_flags(parser: argparse._ActionsContainer, measures: Sequence[str]) -> None:
    """A flag for every option of these measures; None where it is not given, so that others can refuse it."""
    for name, option in OPTIONS.items():
        owners = [measure for measure in measures if option in KINDS[measure].options]
        if owners:
            of = f"{', '.join(owners)}: " if len(measures) > 1 else ""
            shown = str(option.default).lower() if isinstance(option.default, bool) else option.default
            values = _values(option, f"{of}{option.help}")
            parser.add_argument(f"--{name}", **values | {"help": f"{values['help']} (default: {shown})"})


def _values(option: Option, what: str) -> dict:
    """What argparse takes for an option: choices, or a type; and its help."""
    if option.choices:
        return choice(option.choices, None, what)
    if isinstance(option.default, bool):
        return switch(None, what)
    return {"type": bounded(type(option.default), *option.limits), "help": what}


def given_options(args: argparse.Namespace) -> dict:
    """The options among the flags that were given."""
    return {name: vars(args)[name] for name in OPTIONS if vars(args).get(name) is not None}


# --- scripts that make a matrix


def add_analysis_flags(parser: argparse.ArgumentParser, script: str) -> None:
    """All flags of an analysis script; `script`: its file, to which the table of measures gives some of them."""
    measures = [name for name, kind in KINDS.items() if kind.script == Path(script).name]
    first, add = KINDS[measures[0]], parser.add_argument
    if len(measures) > 1:
        add("--measure", required=True, **choice({name: KINDS[name].meaning for name in measures}, None))
    else:
        parser.set_defaults(measure=measures[0])
    add_option_flags(parser, measures)
    others = {name: KINDS[name].draws for name in measures if KINDS[name].draws != first.draws}
    for number, (flag, what) in enumerate((("batch_size", "captions in a batch"), ("iter_num", "batches"))):
        shown = "".join(f"; {name}: {draws[number]}" for name, draws in others.items())
        add(f"--{flag}", type=positive_int, help=f"{what} (default: {first.draws[number]}{shown})")
    modes = list(dict.fromkeys(mode for name in measures for mode in KINDS[name].modes))
    add("--mode", **choice({mode: SAMPLES[mode] for mode in modes}, None, f"default {modes[0]}"))
    add_pool_flag(parser)
    drawn = "disjoint draws of captions; their mean, and the standard deviation beside it"
    add("--repeats", **whole_number(MatrixSettings.repeats, drawn))
    add("--baseline", **switch(False, "also the matrix of row-shuffled layers: what the measure gives by chance"))
    add("--precision", **choice(PRECISIONS, "float32", "of the forward pass"))
    add_common_flags(parser, max_pairs=False, streaming=True, tower=True)


def add_pool_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--pool", **choice(POOLS, None, f"vector of a caption, default {DEFAULT_POOL}"))


def analysis_settings(args: argparse.Namespace) -> MatrixSettings:
    """The settings that the flags of an analysis script name, after the rules across flags; completes `args`."""
    others = [field.name for field in fields(MatrixSettings)][2:]  # flags of the same names
    settings = MatrixSettings(args.measure, given_options(args), **{name: getattr(args, name) for name in others})
    needed = settings.new_measure().min_samples  # refuses an option out of range before anything is read
    if settings.draw_size < needed:
        flags = "--batch_size" if settings.kind.measure.per_draw else "--batch_size times --iter_num"
        raise ValueError(
            f"{flags} is {settings.draw_size}; with these flags {settings.measure} needs at least {needed} captions"
        )
    filled = {name: getattr(settings, name) for name in ("batch_size", "iter_num", "mode", "pool")}
    vars(args).update(settings.options, **filled)
    return settings


# --- scripts that search a matrix


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which matrix is searched. None where not given: the defaults are those of the measure."""
    group = parser.add_argument_group("which matrix (defaults: those of the analysis commands)")
    add = group.add_argument
    meanings = {name: kind.meaning for name, kind in KINDS.items()}
    meanings |= {"rand": "no matrix, random proposals", "combine": "the mean of the ranks of several matrices"}
    add("--select_measure", **choice(meanings, "dc", "matrix to search"))
    add("--combine", nargs="+", choices=tuple(KINDS), metavar="MEASURE", help="for --select_measure combine")
    add("--bs", type=positive_int, help="its --batch_size")
    add("--iter", type=positive_int, help="its --iter_num")
    add("--mode", help="its --mode")
    add("--svcca_mode", choices=KINDS["svcca"].modes, help="its --mode, for svcca")
    add_option_flags(group, tuple(KINDS))
    add_pool_flag(group)
    add("--repeats", type=positive_int, help="its --repeats (default: 1)")


def searched_matrices(args: argparse.Namespace) -> list[MatrixSettings]:
    """The matrices asked for; none for random proposals. Raises ValueError for flags that would change nothing."""
    measure = args.select_measure
    if (measure == "combine") != bool(args.combine):
        raise ValueError("--select_measure combine and --combine MEASURE ... go together")
    _refuse_unused(args)
    common = {name: getattr(args, name) for name in ("seed", *SAMPLE_FLAGS)}
    if measure == "rand":
        return []
    if args.combine:
        pooled = {name: args.pool if pools(name, KINDS[name].modes[0]) else None for name in args.combine}
        return [MatrixSettings(name, pool=pool, **common) for name, pool in pooled.items()]
    given = {field: vars(args)[flag] for flag, field in SEARCHED.items() if vars(args)[flag] is not None}
    if args.svcca_mode:
        given["mode"] = args.svcca_mode
    return [MatrixSettings(measure, given_options(args), **given, **common)]


def _refuse_unused(args: argparse.Namespace) -> None:
    """Raise ValueError for a flag of another matrix than the one that is searched."""
    measure = args.select_measure
    used = {"rand": set(), "combine": {"pool"}}.get(measure)
    if used is None:
        used = {*SEARCHED, *KINDS[measure].defaults} | ({"svcca_mode"} if measure == "svcca" else set())
    flags = {*SEARCHED, *OPTIONS, "svcca_mode"}
    given = [f"--{flag}" for flag in sorted(flags - used) if vars(args)[flag] is not None]
    if given:
        why = "the matrices of --combine are those of their default commands" if measure == "combine" else "leave out"
        raise ValueError(f"--select_measure {measure} takes no {', '.join(given)}: {why}")
