"""Three ways to use a partitioner: basic, with control over execution, with failures in mind."""

import time

from quantum_async import ExecutionMode, QuantumPartitioner


def load_data(context):
    time.sleep(0.05)
    return sorted(context["input_data"])


def process_data(context):
    time.sleep(0.1)
    return [value * 10 for value in context["load_data"]]


def validate_data(context):
    time.sleep(0.1)
    return all(value > 0 for value in context["load_data"])


def store_results(context):
    return f"stored {context['process_data']}, valid: {context['validate_data']}"


def add_units(partitioner):
    # Add computational units with dependencies
    partitioner.add_unit(fn=load_data, dependencies=[], name="load_data")
    partitioner.add_unit(fn=process_data, dependencies=["load_data"], name="process_data")
    partitioner.add_unit(fn=validate_data, dependencies=["load_data"], name="validate_data")
    partitioner.add_unit(
        fn=store_results,
        dependencies=["process_data", "validate_data"],  # Depends on both
        name="store_results",
    )


def basic_parallel_execution(data):
    partitioner = QuantumPartitioner(max_workers=4)
    add_units(partitioner)

    # Build and visualize the execution plan
    plan = partitioner.build_execution_plan()
    print(f"Execution levels: {plan.levels}")
    print(f"Critical path: {plan.critical_path}")
    print(plan.visualize("mermaid"))

    # Execute with context
    results = partitioner.execute({"input_data": data})

    # Access individual results
    print(f"Processed: {results['process_data']}")
    print(f"Valid: {results['validate_data']}")
    print(f"Stored: {results['store_results']}")


def advanced_execution_control(data):
    # Create partitioner with custom execution strategy
    partitioner = QuantumPartitioner(max_workers=8, default_execution_mode=ExecutionMode.PROCESS)
    add_units(partitioner)

    # Execute with monitoring
    metrics = {}

    def start_monitor(unit_id):
        metrics[unit_id] = {"start_time": time.time()}

    def end_monitor(unit_id, result):
        metrics[unit_id]["end_time"] = time.time()
        metrics[unit_id]["duration"] = metrics[unit_id]["end_time"] - metrics[unit_id]["start_time"]

    # Set up monitoring callbacks
    partitioner.on_unit_start = start_monitor
    partitioner.on_unit_complete = end_monitor

    # Execute with specific mode
    partitioner.execute(
        context={"input_data": data},
        execution_mode=ExecutionMode.THREAD,  # Override default mode
        max_workers=4,  # Override default worker count
    )

    # Analyze execution metrics
    total_time = sum(m["duration"] for m in metrics.values())
    wall_time = partitioner.last_execution_metrics["total_duration"]
    print(f"Total execution time: {total_time:.2f}s")
    print(f"Wall time: {wall_time:.2f}s")
    print(f"Parallelism efficiency: {total_time / wall_time:.2f}x")
    print(f"Critical path, as measured: {partitioner.last_result.critical_path}")


class Api:
    """A server that fails `failures` times before it answers."""

    def __init__(self, failures):
        self.failures = failures

    def fetch_data(self, context):
        if self.failures:
            self.failures -= 1
            raise ConnectionError(f"{context['api_url']} does not answer")
        return {"status": "ok", "data": [1, 2, 3]}


def process_with_error_handling(context):
    data = context["fetch_data"]
    if data["status"] == "error":
        # Handle error case
        return {"processed": False}
    return {"processed": True, "result": sum(data["data"])}


def error_handling_and_recovery(failures, metadata):
    # Create partitioner with retry capabilities
    partitioner = QuantumPartitioner(max_workers=4)

    # Add units with retry and timeout configuration
    partitioner.add_unit(
        fn=Api(failures).fetch_data,
        dependencies=[],
        name="fetch_data",
        retries=1,  # Retry once
        timeout=5.0,  # 5-second timeout
        metadata={"resource_type": "io", **metadata},
    )
    partitioner.add_unit(lambda context: "disk: 40% full", name="check_disk")
    partitioner.add_unit(
        fn=process_with_error_handling, dependencies=["fetch_data"], name="process_data"
    )

    # Execute with error handling
    try:
        results = partitioner.execute({"api_url": "https://example.com/api"})
        print(f"{results['process_data']}, attempts: {partitioner.units['fetch_data'].attempt}")
    except Exception as e:
        # Handle execution failure
        print(f"Execution failed: {e}")
        # Check partial results
        print(f"Partial results: {partitioner.get_partial_results()}")
        # Check failed units
        print(f"Failed units: {[unit.id for unit in partitioner.get_failed_units()]}")


def main():
    print("== Basic parallel execution")
    basic_parallel_execution([3, 1, 2])

    print("\n== Advanced execution control")
    advanced_execution_control([3, 1, 2])

    print("\n== Error handling: a retry helps")
    error_handling_and_recovery(1, {})
    print("\n== Error handling: a fallback stands in")
    error_handling_and_recovery(9, {"fallback_value": {"status": "error", "data": []}})
    print("\n== Error handling: the run fails, and keeps what it has")
    error_handling_and_recovery(9, {})


if __name__ == "__main__":
    main()
