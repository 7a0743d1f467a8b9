from advjax.runtime.environment import describe_environment


def test_environment_names_versions_and_devices():
    environment = describe_environment()
    assert {"python", "jax", "flax"} <= set(environment["versions"])
    assert environment["device_count"] >= 1
    assert environment["device_kind"]
    assert environment == describe_environment()
