"""Deployment: cluster files for `ray up`, a cluster of several nodes on one machine, the image, manifests, dashboard and alerts."""
