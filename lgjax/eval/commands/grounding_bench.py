"""`lgjax eval grounding-bench` and `lgjax eval grounding-bench-set`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from lgjax.eval.embedding_judge import EmbeddingOptions
from lgjax.eval.model_options import ModelOptions
from lgjax.eval.running import Shared

File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
MaybeFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Files = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE")]


def grounding_bench(
    *,
    questions: File,
    annotations: File,
    running: Shared,
    judge: ModelOptions,
    embedding: EmbeddingOptions,
    records: MaybeFile = None,
    images: Folder = None,
    category: str = "detail",
    thresholds: tuple[float, ...] | None = None,
    min_iou: float = 0.5,
    deduplicate: bool = False,
    verdicts: MaybeFile = None,
    dry_run: bool = False,
) -> None:
    """Grounded recall, precision and F1 of descriptions, as LLaVA-Grounding's paper defines them.

    Whether a phrase means the thing its box was matched to is judged by words (with --embedding.model NAME
    also by nearness), unless --verdicts FILE or --judge.model NAME is given. --out keeps the verdicts in
    verdicts.jsonl, which --verdicts reads.

    Args:
        questions: Question file of LLaVA's layout: question_id, image, text, category.
        annotations: COCO's instances of the pictures, for example instances_val2014.json.
        running: What predicts.
        judge: A language model that judges.
        embedding: A text embedding for phrases that words say nothing about.
        records: Result file of the original's evaluator, scored in the place of predictions.
        images: Folder of the pictures: to predict from, and to draw the worst answers.
        category: Score the questions of this category ("all": every question).
        thresholds: Score what is above each of these probabilities; none below that of the predictions.
        min_iou: A box belongs to an entity from this IoU on.
        deduplicate: Boxes of one phrase on the same entity count once.
        verdicts: Verdicts that were given before: question_id, phrase_index, gt_id, correct.
        dry_run: Say what asking the model would take, and send nothing.
    """
    from lgjax.eval import bench_report
    from lgjax.eval.answers import check_there, pictures_in
    from lgjax.eval.bench_answers import Pictures
    from lgjax.eval.bench_run import Measure, collect, judge_of, plan, score
    from lgjax.eval.judge import write_verdicts
    from lgjax.eval.llm_judge import ModelJudge
    from lgjax.eval.question_file import of_category, read_questions
    from lgjax.eval.report import finish

    asked = read_questions(questions)
    pictures = Pictures.read(annotations)
    measure = Measure(pictures, thresholds or (), min_iou, deduplicate)
    wanted = of_category(asked, category)
    drawn = None if images is None else pictures_in(images)
    if drawn is not None:
        check_there(drawn, running.limited(wanted))
    found = collect(running, records, asked, wanted, images)
    if found is None:
        return
    tagged = measure.tag(found)
    if dry_run:
        print(plan(tagged, judge))
        return
    client = judge.client() if judge.model else None
    model = ModelJudge(client, judge.model) if client and judge.model else None
    judging = judge_of(verdicts, model, embedding, asked, pictures.coco.categories.values())
    runs = score(tagged, judging)
    if client is not None:
        print(client.spent)
    settings = {**found.settings, **measure.settings, "judge": judging.name, "category": category}
    if running.out is not None:
        for number, run in enumerate(runs):
            name = "verdicts.jsonl" if not number else f"verdicts-{run.threshold}.jsonl"
            write_verdicts(running.out / name, run.answers, run.verdicts, judging.name)
    finish(bench_report.report(runs, settings, drawn), running.out)


def grounding_bench_set(
    *,
    ids: File,
    instances: Files,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    question: str = "Describe this picture in detail.",
) -> None:
    """Make annotations and questions of the 1000 pictures of Grounding-Bench out of COCO's own files.

    The authors published the list of pictures only, so figures on this set are near theirs, not the same.

    Args:
        ids: The list of pictures, one COCO id a line (the authors' q_image_set.txt).
        instances: COCO's instances_val2014.json; may be given several times, also those of 2017.
        out: Folder for annotations.json and questions.jsonl.
        question: What is asked about every picture.
    """
    from lgjax.eval import bench_set

    count, entities = bench_set.build(ids, instances, out, question)
    print(f"wrote {out / bench_set.ANNOTATIONS} and {out / bench_set.QUESTIONS}: ", end="")
    print(f"{count} pictures with {entities} entities")
