# Measures one of Python's process pools. Prints a sample as JSON.
import json, operator, sys, time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

variant, task = sys.argv[1:3]
processes, size, in_flight, starts = map(int, sys.argv[3:7])
warm_up, measure = map(float, sys.argv[7:])
now = time.perf_counter

# Functions and arguments. The functions are those of a module, so that a process can import them however it was started.
CALLS = {
    "number": (operator.mul, 7, 31),
    "input": (len, b"\7" * size),
    "output": (operator.mul, b"\7", size),
    "start": (operator.mul, 7, 31),
}


def build(processes):
    """Returns a pool, and a function that submits the call and returns another one, which waits for the result."""
    function, *arguments = CALLS[task]
    if variant == "multiprocessing.Pool":
        pool = get_context("fork").Pool(processes)
        return pool, lambda: pool.apply_async(function, arguments).get
    pool = ProcessPoolExecutor(processes, get_context("spawn" if "spawn" in variant else "fork"))
    return pool, lambda: pool.submit(function, *arguments).result


def load(submit, seconds):
    """Keeps a number of calls in flight. Returns their latencies, and the time that all of them took."""
    latencies, calls, begin = [], deque(), now()
    while now() < begin + seconds or calls:
        while len(calls) < in_flight and now() < begin + seconds:
            calls.append((now(), submit()))
        if calls:
            submitted, wait = calls.popleft()
            wait()
            latencies.append(now() - submitted)
    return latencies, now() - begin


def start(count):
    """Starts pools of one process, one after the other. Returns the times from there to their first result."""
    times = []
    for _ in range(count):
        begin = now()
        pool, submit = build(1)
        with pool:
            submit()()
            times.append(now() - begin)
    return times, sum(times)


if task == "start":
    latencies, elapsed = start(starts)
else:
    pool, submit = build(processes)
    with pool:
        load(submit, warm_up)
        latencies, elapsed = load(submit, measure)

latencies.sort()
quantile = lambda quantile: latencies[int((len(latencies) - 1) * quantile)] * 1e6
print(json.dumps({"p50_us": quantile(0.5), "p99_us": quantile(0.99), "per_second": len(latencies) / elapsed}))
