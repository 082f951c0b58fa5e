//go:build tools

// Package jaeger names the program that `npm run jaeger` builds; go.mod and go.sum pin it and all that it stands on.
package jaeger

import _ "github.com/jaegertracing/jaeger/cmd/all-in-one"
