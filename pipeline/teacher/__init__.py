"""A teacher model behind chat-completions: an endpoint or the embedded SmolLM2, with a ledger of every answer."""

from pipeline.teacher.answer import Answer
from pipeline.teacher.client import TeacherClient, Usage
from pipeline.teacher.errors import BudgetError, TeacherError
from pipeline.teacher.ledger import Ledger
from pipeline.teacher.opening import check_keys, model_name, open_teacher
from pipeline.teacher.shared import Asking, shared_teacher, stop_asking

__all__ = [
    "Answer",
    "Asking",
    "BudgetError",
    "Ledger",
    "TeacherClient",
    "TeacherError",
    "Usage",
    "check_keys",
    "model_name",
    "open_teacher",
    "shared_teacher",
    "stop_asking",
]
