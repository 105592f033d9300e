"""Processes of tests: their end, and those that hang."""


def exit_statuses(started, timeout):
    """Wait for processes and give their exit statuses; those still running after `timeout` seconds each are killed."""
    for process in started:
        process.join(timeout)
    hanging = [process for process in started if process.is_alive()]
    for process in hanging:
        process.kill()
        process.join()
    assert not hanging, (
        f"{len(hanging)} of {len(started)} processes were still running after {timeout} seconds"
    )
    return [process.exitcode for process in started]
