//go:build !race

package inspect

import "time"

// costMost is what an answer may cost.
const costMost = 50 * time.Millisecond
