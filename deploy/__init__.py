"""Where the jobs run: files for `ray up`, and a cluster of several nodes on one machine."""
