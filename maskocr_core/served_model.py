"""The code of a registered model, as MLflow runs it on loading ("models from code": weights are safetensors, no pickle)."""

from maskocr_core.reader import Reader
from maskocr_core.services import tracking

tracking.serve_with(Reader)
