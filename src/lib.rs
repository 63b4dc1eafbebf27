//! Outrigger: a service-mesh sidecar data plane.
