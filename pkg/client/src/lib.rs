//! How everything outside the API server speaks to it: a `kube::Client` whose transport is TLS or an in-process service,
//! shared informers, work queue, events, leases and the tunnel's agent side. Nobody above can tell the transports apart.
