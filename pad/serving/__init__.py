"""HTTP: a detector as a service, and the page of a watcher. Needs the extra `pad-anomaly[serve]`."""
