"""Requests that the OpenAPI document allows, and those that it does not: no 5xx and no answer that it does not name.

`make fuzz` asks for many more than the few of the test command.
"""

import os
import shutil
from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from service.app import create_app
from service.settings import Settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
# A method that no route has is 405 without a word about it in the document.
NAMES = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


# The database is on disk and a request takes milliseconds; what is tried is the same each time, unless much is tried.
FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 100,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name.lower())
def test_every_operation_answers_as_documented(sqlite_template, tmp_path, mode) -> None:
    shutil.copy(sqlite_template, tmp_path / "clipwatch.db")
    app = create_app(Settings(data_dir=tmp_path))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    checks = CHECKS.get_by_names(list(NAMES))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 13

    for operation in operations:

        @FEW
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            case.validate_response(case.call(), checks=checks)

        try:
            ask()
        except (Unsatisfiable, SkipTest):
            assert mode is GenerationMode.NEGATIVE, f"nothing to ask of {operation.label}"
    app.state.context.close()
