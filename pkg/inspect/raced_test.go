//go:build race

package inspect

import "time"

// costMost is what an answer may cost: with the detector ten times what it costs without.
const costMost = 500 * time.Millisecond
