"""Where the small model comes from: retraining, lineage, environment, and what the words mean."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.report.charts import curve
from compressor.report.document import (
    Block,
    BulletList,
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Folded,
    Paragraph,
    Section,
    Strong,
    Subheading,
    Table,
    Text,
    Tone,
    listed,
)
from compressor.report.glossary import GLOSSARY
from compressor.report.missing import Commands
from compressor.results.artifact import Results
from compressor.results.training import EpochRecord, WhileTraining
from compressor.words import (
    DASH,
    count,
    digits,
    label,
    percent,
    plain,
    tuned,
)


def retraining_section(results: Results, commands: Commands) -> Section:
    """Each retraining, with its curves."""
    blocks: list[Block] = []
    for retraining in results.retrainings:
        blocks.append(Subheading(title=retraining.how))
        facts = retraining.facts(without=("how", "history"))
        if facts:
            blocks.append(listed(facts))
        blocks += _history(retraining.history)
    if not blocks:
        text = "The small model has not been retrained."
        blocks.append(commands.missing(text, commands.retrain))
    return Section(anchor="retraining", title="Retraining", blocks=tuple(blocks))


def while_training_section(training: WhileTraining) -> Section:
    """The training during which channels left: event by event, then epoch by epoch."""
    blocks: list[Block] = [listed(training.facts(without=("events", "history", "mean_stability")))]
    rows: list[tuple[Cell, ...]] = []
    for event in training.events:
        shares = [percent(correct / event.total) if event.total else DASH for correct in (event.before, event.after)]
        counts = [f"{count(correct)} / {count(event.total)}" for correct in (event.before, event.after)]
        around = [f"{c} ({s})" for c, s in zip(counts, shares, strict=True)]
        instability = DASH if event.instability is None else percent(event.instability)
        rows.append(tuple((text,) for text in (count(event.epoch), count(event.channels), *around, instability)))
    names = ("after epochs", "channels", "tuning split before", "after", "instability")
    columns = tuple(Column(name=name, numeric=True) for name in names)
    blocks.append(Table(columns=columns, rows=tuple(rows), caption="Event by event"))
    if training.mean_stability is not None:
        blocks.append(Paragraph(text=("Mean stability: ", Strong(content=percent(training.mean_stability / 100)), ".")))
    note: Text = (
        "Instability is the share of the right answers that an event takes, and stability the rest of them; the "
        "training that follows may win them back.",
    )
    return Section(
        anchor="events", title="Pruned while training", blocks=(*blocks, *_history(training.history)), note=note
    )


def _history(history: Sequence[EpochRecord]) -> list[Block]:
    if not history:
        return [Paragraph(text=("No history was recorded.",), tone=Tone.QUIET)]
    metric = history[-1].metric
    quantities = (
        ("training loss", [e.train_loss for e in history], digits),
        (f"{metric or 'correct'} on the tuning split", [e.tuned for e in history], digits if metric else percent),
        ("learning rate", [e.rate for e in history], digits),
    )
    first = history[0].epoch + (1 if history[0].epoch == 0 else 0)  # the file counts from 0, people from 1
    drawings = []
    for title, values, words in quantities:
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            drawings.append(curve(title, known, first=first, shown=[words(value) for value in known]))
    rows: list[tuple[Cell, ...]] = []
    for number, epoch in enumerate(history):
        tune = (
            f"{count(epoch.tune_correct)} / {count(epoch.tune_total)}"
            if epoch.tune_correct is not None
            else tuned(epoch)
        )
        rows.append(
            (
                (str(first + number),),
                (digits(epoch.rate) if epoch.rate is not None else DASH,),
                (digits(epoch.train_loss, significant=4) if epoch.train_loss is not None else DASH,),
                (tune,),
            )
        )
    names = ("epoch", "learning rate", "training loss", "tuning split")
    table = Table(
        columns=tuple(Column(name=n, numeric=True) for n in names), rows=tuple(rows), caption="Epoch by epoch"
    )
    folded: Block = table if len(rows) <= 10 else Folded(summary=f"Epoch by epoch: {len(rows)} rows", blocks=(table,))
    return [Figure(drawings=tuple(drawings), caption=(), columns=3), folded] if drawings else [folded]


def lineage_section(results: Results, commands: Commands, *, caveats: Sequence[str] = ()) -> Section:
    """From the first checkpoint to this network, step by step."""
    title = "Lineage"
    cautions: tuple[Block, ...] = (Facts(pairs=tuple(("caveat", (text,)) for text in caveats)),) if caveats else ()
    if not results.lineage:
        missing = commands.missing("No lineage is on record.", commands.prune)
        return Section(anchor="lineage", title=title, blocks=(missing, *cautions))
    steps: list[Text] = []
    for facts in results.lineage:
        step = plain(facts.get("step", "step"))
        rest = [(key, value) for key, value in facts.items() if key not in {"step", "history"} and value is not None]
        words = "; ".join(f"{label(key)} {plain(value, key=key)}" for key, value in rest)
        steps.append((Strong(content=step), f": {words}" if words else ""))
    return Section(anchor="lineage", title=title, blocks=(BulletList(items=tuple(steps), ordered=True), *cautions))


def environment_section(results: Results, commands: Commands) -> Section:
    """Where it was made and measured, by which command."""
    blocks: list[Block] = []
    if results.command:
        blocks.append(Facts(pairs=(("command", (Code(content=results.command),)),)))
    else:
        blocks.append(commands.missing("The command was not recorded.", commands.prune))
    bench = results.bench.environment if results.bench else {}
    shown = results.environment or bench
    if shown:
        blocks.append(listed(shown.items()))
    else:
        blocks.append(commands.missing("No environment was recorded.", commands.bench))
    differing = tuple((key, value) for key, value in bench.items() if results.environment.get(key) != value)
    if results.environment and differing:
        blocks.append(Subheading(title="Where the bench ran differs in"))
        blocks.append(listed(differing))
    further = {"adapt": results.adapt, "lottery": results.lottery, **results.rest}
    if any(further.values()):
        blocks.append(Subheading(title="Further entries"))
        blocks.append(listed((key, value) for key, value in further.items() if value))
    return Section(anchor="environment", title="Environment and command", blocks=tuple(blocks))


def glossary_section() -> Section:
    """What the words mean."""
    return Section(
        anchor="glossary",
        title="Glossary",
        blocks=(Facts(pairs=tuple((term, (meaning,)) for term, meaning in GLOSSARY)),),
    )
