"""The program that torchrun starts: model, data, loop and recorder.

`python -m worker.training --spec spec.json --out FOLDER` reads an `ArmSpec`, trains it, and writes `record.jsonl`
(and `error-rank<N>.json` where a rank fails) into the folder. It may run commits of Opacus that
were not reviewed, so it imports no store, queue, API or settings and is started with a scrubbed environment.
"""
