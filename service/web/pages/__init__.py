"""The pages: one module each, with a `router` that `service.web.dashboard` adds to the app."""
