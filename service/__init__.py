"""The regression service: contract, store, queue, API, dashboard. Knows no torch, no Opacus and no worker."""
