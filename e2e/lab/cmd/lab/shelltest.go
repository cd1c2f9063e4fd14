package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// commandTest is a test of a whole command of a job: what it is given from here, how it ends, what it prints.
type commandTest struct {
	name   string
	cmd    machine.Command
	exit   int
	prints []string // regular expressions, in this order
	hand   *hand    // whoever sits at its terminal
	out    transcript
}

// shellTests are those of the demo's shell. The second goes through a terminal on both sides.
func shellTests() (tests []*commandTest, end func(), err error) {
	piped := &commandTest{name: "TestShellFromPipe", cmd: demoShell(), exit: 7, prints: []string{
		`default/kubia +http/TCP +10\.96\.0\.80:80 +rr +3 \(2 here\)`,
		`= +served by one of 3`,
		`TCP  10\.96\.0\.80:80 rr`,
		`pod-a 4, pod-b 4, pod-c 4`,
		`dns-a answered`,
		`it saw 172\.28\.128\.13`, // node3 masquerades
		`10\.244\.1\.10/24`,
		`refused`,
		`status 1`,
		`pod-a 4, pod-b 4, pod-c 4, pod-d 4`,
	}}
	piped.cmd.Input = strings.NewReader(`
ipvs-proxy show
ipvs-proxy explain 172.28.128.100 to 10.96.0.80:80
ipvsadm -Ln
ask -n 12 10.96.0.80:80
ask -udp 10.96.0.10:53
as client ask 172.28.128.13:30123
as pod-a ip addr
ask 10.96.0.80:81
echo status $?
sed -i 's/^  - .*10.244.1.10.*/&\n  - {addresses: [10.244.3.10], nodeName: node3, conditions: {ready: true}}/' kubia.yaml
until ask -n 16 10.96.0.80:80 | grep 'pod-d 4'; do :; done
exit 7
`)
	us, theirs, err := pty.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("a terminal for the demo's shell: %w", err)
	}
	typed := &commandTest{name: "TestShellAtTerminal", cmd: demoShell(), exit: 3, prints: []string{
		`33 101\r\n`, `running\r\n`, `agents 3\r\n`,
	}}
	typed.cmd.Input = theirs
	const prompt = "node1# "
	typed.hand = &hand{tty: us, steps: [][2]string{
		{prompt, "stty size\r"},
		{prompt, "sh -c 'echo runn\"\"ing; exec sleep 1000'\r"}, // said by what Ctrl-C is for, so that it is there
		{"running\r\n", "\x03"},
		{prompt, "echo agents $(ps ax | grep -c '[i]pvs-proxy run')\r"}, // Ctrl-C was not for them
		{prompt, "exit 3\r"},
	}}
	if err := pty.Setsize(us, &pty.Winsize{Rows: 33, Cols: 101}); err != nil {
		return nil, nil, fmt.Errorf("size of a terminal: %w", err)
	}
	return []*commandTest{piped, typed}, func() { us.Close(); theirs.Close() }, nil
}

// addShellTests are those that were asked for; what they need is added to a job that has the agent.
func addShellTests(ctx context.Context, o testOptions, job *machine.Job, dir string) (tests []*commandTest, end func(), err error) {
	wanted, err := regexp.Compile(o.run)
	if err != nil {
		return nil, nil, err
	}
	all, end, err := shellTests()
	if err != nil {
		return nil, nil, err
	}
	for _, t := range all {
		if wanted.MatchString(t.name) {
			tests = append(tests, t)
		}
	}
	if len(tests) == 0 {
		return nil, end, nil
	}
	if err := addDemo(ctx, job, dir); err != nil {
		end()
		return nil, nil, err
	}
	for _, t := range tests {
		t.cmd.Timeout, t.cmd.Output, t.cmd.Env = 3*time.Minute, &t.out, append(t.cmd.Env, o.env...)
		if t.hand != nil {
			t.out.then = t.hand.sees
		}
	}
	return tests, end, nil
}

// ended judges the command.
func (t *commandTest) ended(r *recorder, res machine.Result) {
	id := event{Package: importPath("e2e/demo"), Test: t.name, Elapsed: res.Took.Seconds(), Action: "pass"}
	if err := t.judge(res); err != nil {
		id.Action = "fail"
		r.event(event{Package: id.Package, Test: id.Test, Action: "output", Output: fmt.Sprintf("%v\nit printed:\n%s\n", err, t.out.String())})
	}
	r.event(id)
}

func (t *commandTest) judge(res machine.Result) error {
	if res.Exit != t.exit || res.Err != "" {
		return fmt.Errorf("ended with %d (%s), want %d", res.Exit, res.Err, t.exit)
	}
	rest := t.out.String()
	for _, want := range t.prints {
		at := regexp.MustCompile(want).FindStringIndex(rest)
		if at == nil {
			return fmt.Errorf("did not print %q where that was due", want)
		}
		rest = rest[at[1]:]
	}
	if t.hand != nil && t.hand.err != nil {
		return t.hand.err
	}
	return nil
}

// transcript keeps what was printed, and shows it to somebody.
type transcript struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	then func(shown []byte)
}

func (t *transcript) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.buf.Write(b)
	if t.then != nil {
		t.then(b)
	}
	return n, err
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// hand types at a terminal: of each step the second when the first has been seen.
type hand struct {
	tty   *os.File
	steps [][2]string
	seen  []byte
	err   error
}

func (h *hand) sees(shown []byte) {
	h.seen = append(h.seen, shown...)
	for len(h.steps) > 0 {
		at := bytes.Index(h.seen, []byte(h.steps[0][0]))
		if at < 0 {
			return
		}
		h.seen = h.seen[at+len(h.steps[0][0]):]
		if _, err := io.WriteString(h.tty, h.steps[0][1]); err != nil {
			h.err = errors.Join(h.err, fmt.Errorf("type %q: %w", h.steps[0][1], err))
		}
		h.steps = h.steps[1:]
	}
}
