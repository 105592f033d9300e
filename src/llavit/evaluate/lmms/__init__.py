"""The bridge to lmms-eval: a plug-in that lets it ask LLaViT models, and the paper's benchmarks.

Nothing here imports lmms-eval until it is needed; it is the extra `lmms`.
"""

from llavit.evaluate.lmms.paper import SUITES, SuiteTask
from llavit.evaluate.lmms.suite import run_suite

__all__ = ["SUITES", "SuiteTask", "run_suite"]
