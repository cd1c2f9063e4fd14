package main

import (
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// newLogger logs to a writer, a line an event, and never waits for it. dropped counts the lines that it did not take in
// time.
func newLogger(verbosity uint32, format string, out io.Writer) (log *zap.Logger, dropped func() uint64) {
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.ISO8601TimeEncoder
	cfg.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewConsoleEncoder(cfg)
	if format == "json" {
		encoder = zapcore.NewJSONEncoder(cfg)
	}
	level := zap.InfoLevel
	if verbosity >= 4 {
		level = zap.DebugLevel
	}
	l := newLines(out, waitingBytes, func(lost uint64) []byte {
		entry := zapcore.Entry{Level: zap.WarnLevel, Time: time.Now(), Message: "lines of this log were dropped: whoever reads it was too slow"}
		text, err := encoder.EncodeEntry(entry, []zap.Field{zap.Uint64("lines", lost)})
		if err != nil { // a number and a text
			return fmt.Appendf(nil, "%s: %d: %v\n", entry.Message, lost, err)
		}
		return text.Bytes()
	})
	return zap.New(zapcore.NewCore(encoder, l, level), zap.ErrorOutput(l)), l.Dropped
}

// captureLogs has what libraries write to standard error by themselves go through the log: they would wait there.
func captureLogs(log *zap.Logger) {
	zap.RedirectStdLog(log)
	cluster.LogTo(func(text string) { log.Info("client-go", zap.String("said", text)) })
}

// complain writes a last line, unless nobody takes it.
func complain(out io.Writer, line string) {
	l := newLines(out, waitingBytes, func(uint64) []byte { return nil })
	_, _ = io.WriteString(l, line+"\n")
	_ = l.Sync()
}
