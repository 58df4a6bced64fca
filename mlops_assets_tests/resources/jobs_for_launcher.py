"""A code location with one run that sleeps; loaded by a real code server in test_launcher.py."""

import time

import dagster as dg


@dg.op
def sleep():
    time.sleep(600)


@dg.job(executor_def=dg.in_process_executor)
def sleeper():
    sleep()
