package publish

import (
	"flag"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// Most tests wait for servers: with one for each processor the machine would idle. What is given to `go test` counts.
	flag.Set("test.parallel", "6")
	goleak.VerifyTestMain(m)
}
