"""Makes the report of the answers."""

from __future__ import annotations

from collections.abc import Sequence

from atp_runtime.evaluation.accuracy import accuracies
from atp_runtime.evaluation.answer_log import AnsweredQuestion, Run
from atp_runtime.evaluation.examiner import FAILED
from atp_runtime.evaluation.formats.format import Format
from atp_runtime.evaluation.report import (
    FORMAT,
    SCHEMA_VERSION,
    BundleFacts,
    Example,
    Machine,
    Report,
)
from atp_runtime.evaluation.token_statistics import latency, token_statistics
from atp_runtime.evaluation.yes_no_scores import yes_no_scores
from atp_runtime.manifest import Manifest

_WRONG = 10


def summarise(
    answers: Sequence[AnsweredQuestion],
    run: Run,
    format_: Format,
    bundle: tuple[str, Manifest],
    machine: Machine,
) -> Report:
    """The report of a run.

    Args:
        answers: In the order of the data, at least one.
        run: What was asked of what.
        format_: The benchmark's.
        bundle: Its directory's name, and its manifest.
        machine: Where it ran.
    """
    name, manifest = bundle
    points = [stage.pruning.before_layer for stage in manifest.segments if stage.pruning]
    routed = {stage.layers[0] for stage in manifest.segments if stage.routed}
    return Report(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        run=run,
        bundle=_facts(name, manifest),
        machine=machine,
        title=format_.title,
        metric=format_.metric,
        asked=len(answers),
        images=len({image for it in answers for image in it.images}),
        failed=sum(it.finish_reason == FAILED for it in answers),
        cut=sum(it.finish_reason == "length" for it in answers),
        accuracy=accuracies(answers),
        yes_no=yes_no_scores(answers),
        tokens=token_statistics(answers, points, routed),
        latency=latency(answers),
        wrong=_wrong(answers),
    )


def _facts(name: str, manifest: Manifest) -> BundleFacts:
    origin = manifest.provenance
    return BundleFacts(
        name=name,
        model=origin.model,
        checkpoint=origin.checkpoint_fingerprint,
        precision=manifest.precision,
        dialect=manifest.dialect,
        notice=origin.notice,
    )


def _wrong(answers: Sequence[AnsweredQuestion]) -> tuple[Example, ...]:
    """Some wrong answers, taken evenly from all of them."""
    wrong = [it for it in answers if it.score is not None and it.score < 0.5]
    count = min(_WRONG, len(wrong))
    chosen = (wrong[place * len(wrong) // count] for place in range(count))
    return tuple(Example(it.id, it.kind, it.prompt, it.truth or "", it.answer) for it in chosen)
