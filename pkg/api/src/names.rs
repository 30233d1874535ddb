//! The syntax of object names, labels and annotations (RFC 1035, RFC 1123, `apimachinery/pkg/util/validation`).
