"""The bridge to lmms-eval: a plug-in that lets it ask LLaViT models, the paper's benchmarks, our tasks in its format.

Nothing here imports lmms-eval until it is needed; it is the extra `lmms`.
"""

from llavit.evaluate.lmms.export import export_lmms_task
from llavit.evaluate.lmms.paper import SUITES, SuiteTask
from llavit.evaluate.lmms.suite import run_suite

__all__ = ["SUITES", "SuiteTask", "export_lmms_task", "run_suite"]
