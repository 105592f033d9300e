"""The paper's benchmarks as lmms-eval names them: what each downloads, and which of its metrics is the one to report.

A table of our own, so that it can be shown where lmms-eval is not installed; `make test-lmms` holds it to lmms-eval's
own files. Benchmarks of the paper's families that need a paid judge (MathVista) are not among them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SuiteTask:
    """One benchmark.

    Attributes:
        name: lmms-eval's task.
        family: general, knowledge, ocr_chart or vision_centric.
        dataset: id of its data set on the hub.
        metrics: what to report; lmms-eval's results hold the rest too.
        top: the best possible value of each of these metrics, where it is not 1.
    """

    name: str
    family: str
    dataset: str
    metrics: tuple[str, ...]
    top: tuple[float, ...] = (1,)


PAPER = (
    SuiteTask(
        "mme", "general", "lmms-lab-encoder/MME", ("mme_perception_score", "mme_cognition_score"), (2000, 800)
    ),
    SuiteTask("mmbench_en_dev_static", "general", "lmms-lab-encoder/MMBench", ("gpt_eval_score",), (100,)),
    SuiteTask("seedbench", "general", "lmms-lab-encoder/SEED-Bench", ("seed_image", "seed_all"), (1, 1)),
    SuiteTask("gqa", "general", "lmms-lab-encoder/GQA", ("exact_match",)),
    SuiteTask("pope", "general", "lmms-lab-encoder/POPE", ("pope_f1_score", "pope_accuracy"), (1, 1)),
    SuiteTask("mmstar", "general", "Lin-Chen/MMStar", ("average",)),
    SuiteTask("scienceqa_img", "knowledge", "lmms-lab-encoder/ScienceQA", ("exact_match",)),
    SuiteTask("mmmu_val", "knowledge", "lmms-lab-encoder/MMMU", ("mmmu_acc",)),
    SuiteTask("ai2d", "knowledge", "lmms-lab-encoder/ai2d", ("exact_match",)),
    SuiteTask("chartqa", "ocr_chart", "lmms-lab-encoder/ChartQA", ("relaxed_overall",)),
    SuiteTask("ocrbench", "ocr_chart", "echo840/OCRBench", ("ocrbench_accuracy",)),
    SuiteTask("textvqa_val", "ocr_chart", "lmms-lab-encoder/textvqa", ("exact_match",)),
    SuiteTask("docvqa_val", "ocr_chart", "lmms-lab-encoder/DocVQA", ("anls",)),
    SuiteTask(
        "mmvp", "vision_centric", "lmms-lab-eval/MMVP", ("mmvp_pair_accuracy", "mmvp_accuracy"), (1, 1)
    ),
    SuiteTask("realworldqa", "vision_centric", "lmms-lab-encoder/RealWorldQA", ("exact_match",)),
    SuiteTask("cv_bench", "vision_centric", "nyu-visionx/CV-Bench", ("cv_bench_acc",)),
)
"""Of the paper (arXiv 2511.10301): families as Cambrian-1's, POPE and MMStar counted as general."""

SUITES = {"paper": PAPER}
