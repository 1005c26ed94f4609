"""What `compress prune` and its neighbours print of their results: tables on stdout, caveats on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.cli.printing import console, talk

if TYPE_CHECKING:
    from rich.table import Table

    from compressor.results.artifact import Results
    from compressor.results.changes import Achieved, Masking, Pruning, Repairing
    from compressor.results.latency import MeetingLatency
    from compressor.results.records import Plain
    from compressor.results.training import WhileTraining


def columns(*names: str, left: tuple[str, ...] = ("",)) -> Table:
    """An empty table; columns are for numbers but for those in `left`."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def before_and_after(achieved: Achieved, wishes: Plain) -> Table:
    """What both networks count, the share that stays, and the one that was asked for."""
    from compressor.words import percent, scaled

    table = columns("", "dense", "small", "stays", "asked")
    for name in ("channels", "params", "macs"):
        pair, wanted = getattr(achieved, name), wishes.get(name)
        if pair is not None:
            stays, asked = percent(pair[1] / pair[0], decimals=1), "" if wanted is None else percent(wanted, decimals=1)
            table.add_row(name, scaled(pair[0]), scaled(pair[1]), stays, asked)
    return table


def show_results(results: Results) -> None:
    """What was asked for and what came of it."""
    if results.pruning is None:
        if results.masking is not None:
            show_masking(results.masking)
        show_repair(results.repairing)
        return
    show_surgery(results.pruning)
    if results.while_training is not None:
        show_events(results.while_training)
    elif results.pruning.proof is not None and results.pruning.proof.vacuous:
        from compressor.words import VACUOUS

        talk().print(f"caveat: {VACUOUS}", soft_wrap=True)
    show_latency(results.latency)
    show_repair(results.repairing)
    show_remains(results.pruning)


def show_surgery(pruning: Pruning) -> None:
    """What both networks count, and the proof."""
    from compressor.words import proof_in_words

    asked = pruning.requested
    wishes = {"channels": 1 - asked["ratio"]} if "ratio" in asked else asked
    console().print(before_and_after(pruning.achieved, wishes))
    if pruning.proof is not None:
        console().print(f"\nsurgery proof: {proof_in_words(pruning.proof)}", soft_wrap=True)
    for caveat in pruning.caveats:
        talk().print(f"caveat: {caveat}", markup=False, soft_wrap=True)


def show_remains(pruning: Pruning) -> None:
    """What the small network is, and what was left alone."""
    out = console()
    if pruning.kept_as == "program":
        out.print(
            "kept as an exported program, which trains, exports and prunes again like any network, but has no layers",
            soft_wrap=True,
        )
        if pruning.takes is not None:
            out.print(f"the program takes inputs of {pruning.takes}; others are refused", markup=False, soft_wrap=True)
    if pruning.outputs:
        kept = ", ".join(pruning.outputs)
        out.print(f"outputs kept: {kept}; the others may differ, and are not exported", markup=False, soft_wrap=True)
    if pruning.emptied:
        out.print(f"branches taken out: {', '.join(pruning.emptied)}", markup=False)
    for one in pruning.left_alone:
        out.print(f"left alone: {one.layer} ({one.reason})", style="dim", markup=False)


def show_events(training: WhileTraining) -> None:
    """What each event took, and what it cost on the tuning split."""
    from compressor.words import count, percent

    out = console()
    how = "zeroed, and left to train on" if training.regrow else "silenced for good"
    out.print(f"trained for {training.epochs} epochs meanwhile; what the events chose was {how}", markup=False)
    table = columns("after epochs", "channels", "tune before", "after")
    for event in training.events:
        shares = [percent(correct / event.total) for correct in (event.before, event.after)]
        table.add_row(count(event.epoch), count(event.channels), *shares)
    out.print(table)


def show_latency(latency: MeetingLatency | None) -> None:
    """How fast the network is by the clock, where a latency was the budget."""
    if latency is None:
        return
    from compressor.words import milliseconds, multiple, percent, speedup_with_interval

    out = console()
    where = f"{latency.runtime}, batch {latency.batch}, threads: {latency.threads}"
    if latency.speedup is None or latency.dense_ms is None or latency.small_ms is None:
        predicted = multiple(latency.trials[-1].predicted)
        out.print(f"latency: predicted {predicted} on {where}, by a table from there", markup=False)
        talk().print("caveat: predicted, not measured: run it there, `compress bench --pack`")
        return
    out.print(
        f"speed-up: {speedup_with_interval(latency.speedup)}, asked {multiple(latency.wanted)}; "
        f"{milliseconds(latency.dense_ms)} before, {milliseconds(latency.small_ms)} after, on {where}",
        markup=False,
    )
    if latency.table_error is not None:
        off = percent(latency.table_error, decimals=1)
        text = f"table: {off} off at first; widths are multiples of {latency.align}, by measurement; trials: "
        out.print(f"{text}{len(latency.trials)}", style="dim", markup=False)
    for caveat in latency.caveats:
        talk().print(f"caveat: {caveat}", markup=False)
    search = latency.search
    if search is not None:
        tried = ", ".join(f"{multiple(one.speedup)} loses {one.drop:.2f}" for one in search.tried)
        text = f"loses {search.drop:.2f} points on the tuning split, {search.allowed:g} allowed; tried: {tried}"
        out.print(text, markup=False, soft_wrap=True)
    elif not latency.met and latency.tolerance is not None:
        off = percent(latency.tolerance, decimals=0)
        talk().print(f"caveat: that is further from what was asked than {off}")


def show_repair(repair: Repairing | None) -> None:
    """How far the output is from the dense network's, before and after the repair."""
    if repair is None:
        return
    before, after = repair.rise or (None, None)
    if before is None or after is None:
        console().print(f"repair: {repair.how}, by {repair.data}", markup=False)
        return
    text = f"repair: {repair.how} on {repair.images:,} images of {repair.data}; output error {before:.3g} before, "
    text += f"{after:.3g} after"
    console().print(text if repair.kept else f"{text}; made worse by it, left as it was", markup=False)


def show_masking(masking: Masking) -> None:
    """What an unstructured mask saves on disk, and that it saves no time."""
    from compressor.words import count, percent, size

    out = console()
    if masking.zeros is not None and masking.weights and masking.sparsity is not None:
        asked = "" if masking.requested is None else f", asked {percent(masking.requested)}"
        share = f"{percent(masking.sparsity)}{asked}"
        out.print(f"{count(masking.zeros)} of {count(masking.weights)} weights are zero ({share})")
    if masking.dense_bytes and masking.stored_bytes is not None:
        table = columns("", "dense", "sparse", "stays")
        stays = percent(masking.stored_bytes / masking.dense_bytes, decimals=1)
        table.add_row("weights", size(masking.dense_bytes), size(masking.stored_bytes), stays)
        out.print(table)
    out.print("\n" + (masking.statement or ""), markup=False)
