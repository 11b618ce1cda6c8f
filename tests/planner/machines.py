"""A machine as if it had been measured."""

from coterie.planner import DiskSpeed, Machine, ProductSpeed


def a_machine(disk: float = 2e9) -> Machine:
    product = ProductSpeed(token=20e9, prompt=80e9)
    return Machine(
        threads=2,
        disk=DiskSpeed(path="/somewhere", random=disk, sequential=disk),
        bus=30e9,
        products={"bf16": product, "int8": product, "int4": ProductSpeed(token=10e9, prompt=30e9)},
        quantising=1e9,
    )
