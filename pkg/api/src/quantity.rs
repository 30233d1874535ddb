//! Resource quantities: `100m`, `1Gi`, `1e3` (`apimachinery/pkg/api/resource`).
