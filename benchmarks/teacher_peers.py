"""One peer's client against the server of `teacher.py`, run by it in the peer's own environment: `PEER URL FOLDER REQUESTS`.

Prints seconds and processor time of asking (imports are not counted), memory, and how many of the answers are good ones.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

SLOTS = 256
CHARACTERS = 1_000
TIMEOUT_S = 10


def questions(count: int) -> list[str]:
    """As `teacher.questions`."""
    return [
        f"Question {number:06d}: " + "what is it that one would like to know of this? " * (CHARACTERS // 48)
        for number in range(count)
    ]


def data_designer(url: str, folder: Path, count: int) -> Callable[[], list[str]]:
    import data_designer.config as dd
    import pandas
    from data_designer.interface import DataDesigner

    seed = folder / "seed.parquet"
    pandas.DataFrame({"question": questions(count)}).to_parquet(seed)
    parameters = dd.ChatCompletionInferenceParams(max_parallel_requests=SLOTS, timeout=TIMEOUT_S, max_tokens=512, temperature=0.0)
    model = dd.ModelConfig(alias="m", model="m", provider="loopback", inference_parameters=parameters, skip_health_check=True)
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.LocalFileSeedSource(path=str(seed)))
    builder.add_column(dd.LLMTextColumnConfig(name="answer", model_alias="m", prompt="{{ question }}"))
    provider = dd.ModelProvider(name="loopback", endpoint=f"{url}/v1", provider_type="openai", api_key="none")
    designer = DataDesigner(artifact_path=folder / "artifacts", model_providers=[provider])
    designer.set_run_config(dd.RunConfig(buffer_size=count, disable_early_shutdown=True))

    def ask() -> list[str]:
        created = designer.create(builder, num_records=count)
        return [str(answer) for answer in created.load_dataset()["answer"]]

    return ask


def curator(url: str, folder: Path, count: int) -> Callable[[], list[str]]:
    import litellm

    os.environ |= {
        "CURATOR_CACHE_DIR": str(folder / "cache"),
        "TELEMETRY_ENABLED": "false",
        "CURATOR_VIEWER": "0",
        "OPENAI_API_KEY": "none",
        # It wants the network for a tokenizer that litellm brings along.
        "TIKTOKEN_CACHE_DIR": str(Path(litellm.__file__).parent / "litellm_core_utils" / "tokenizers"),
    }
    from bespokelabs import curator as library

    asked = library.LLM(
        model_name="m",
        backend="openai",
        generation_params={"temperature": 0.0, "max_tokens": 512},
        backend_params={
            "base_url": f"{url}/v1",
            "max_concurrent_requests": SLOTS,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
            "request_timeout": TIMEOUT_S,
            "require_all_responses": False,
        },
    )

    def ask() -> list[str]:
        response = asked(questions(count))
        return [str(row["response"]) for row in getattr(response, "dataset", response)]

    return ask


PEERS: dict[str, Callable[[str, Path, int], Callable[[], list[str]]]] = {"data-designer": data_designer, "curator": curator}


def processor_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> int:
    name, url, folder, count = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    ask = PEERS[name](url, folder, count)
    began, cpu = time.perf_counter(), processor_s()
    answers = ask()
    seconds, cpu = time.perf_counter() - began, processor_s() - cpu
    result = {
        "seconds": round(seconds, 2),
        "cpu_ms_per_request": round(1000 * cpu / count, 3),
        "answers": len(answers),
        "good_answers": sum(answer.startswith("The answer to 'Question ") for answer in answers),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    print(f"\nRESULT {json.dumps(result)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
