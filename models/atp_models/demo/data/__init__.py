"""The demo's data sets: drawn scenes and easy-VQA, written as LLaVA conversations."""

from atp_models.demo.data.baseline import Baseline, question_only_baseline
from atp_models.demo.data.sets import SETS, write_data_set

__all__ = ["SETS", "Baseline", "question_only_baseline", "write_data_set"]
