"""The error of an exported model behind MLflow, as MLflow's server answers it."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from dfer_dist.utils.errors import UserError


class RefusedInput(UserError, MlflowException):
    """An input that cannot be predicted. A server answers with status 400 and the one line.

    MLflow answers any other exception with an escaped traceback.
    """

    def __init__(self, message: str) -> None:
        MlflowException.__init__(self, message, error_code=BAD_REQUEST)

    def serialize_as_json(self) -> str:
        """Return the server's answer, without the whole input that MLflow puts first."""
        self.message = str(self)
        return str(super().serialize_as_json())
