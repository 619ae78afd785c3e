module devcluster/gateway-api

go 1.26.0

// Only its CustomResourceDefinitions are used, by tests/integration.
require sigs.k8s.io/gateway-api v1.6.1
