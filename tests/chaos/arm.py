"""An arm without torch: an agent and two ranks that play a record back. `python arm.py PLAN`, a JSON document.

Its verdict is part of the plan. `poison` kills the worker that started it. Standard library only: it starts in 40 ms.
"""

import ctypes
import json
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1


def main(plan):
    _die_with_parent()
    ranks = [_forked(plan, rank) for rank in range(2)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    return max(abs(status) for status in statuses)


def _forked(plan, rank):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        # As torchrun does it: no signal to the agent's group reaches a rank.
        os.setsid()
        _die_with_parent()
        status = _first(plan) if rank == 0 else _other(plan)
    finally:
        os._exit(status)


def _first(plan):
    with open(plan["record"], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    folder, verdict = plan["folder"], plan["verdict"]
    with open(f"{folder}/record.jsonl", "w", encoding="utf-8") as record:
        for line in lines:
            if line["event"] == "start" and plan["source"]:
                line["source"] = plan["source"]
            if line["event"] == "step":
                time.sleep(plan["pause"])
                if verdict == "failed":
                    line["loss"] += 1.0
            record.write(json.dumps(line) + "\n")
            record.flush()
            if line["event"] == "step" and verdict in ("unsupported", "error", "poison"):
                return _end_early(folder, verdict, plan["worker"])
    return 0


def _end_early(folder, verdict, worker):
    if verdict == "poison":
        os.kill(worker, signal.SIGKILL)
        time.sleep(60)
    kind = "unsupported" if verdict == "unsupported" else "crash"
    with open(f"{folder}/error-rank0.json", "w", encoding="utf-8") as file:
        json.dump({"kind": kind, "message": f"as planned: {verdict}", "rank": 0}, file)
    return 1


def _other(plan):
    os.write(1, f"a rank of {plan['verdict']}\n".encode())
    time.sleep(plan["pause"])
    return 0


def _die_with_parent():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
