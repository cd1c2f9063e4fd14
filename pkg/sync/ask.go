package sync

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// ErrCrowded: so many questions wait that another one would have to wait too long.
var ErrCrowded = errors.New("too many questions wait for the loop: ask again in a moment")

// ErrEnded: the loop does not run any more.
var ErrEnded = errors.New("the loop has ended")

// mostAsking is how many questions may wait for the loop.
const mostAsking = 128

// askers are those who have a question for the loop. A question is not kept anywhere: who asks waits at the channel.
type askers struct {
	questions chan *question
	waiting   atomic.Int32
	ended     chan struct{}
}

type question struct {
	ask  func(*View)
	done chan error
}

func newAskers() *askers { return &askers{questions: make(chan *question), ended: make(chan struct{})} }

func (a *askers) end() { close(a.ended) }

// Ask puts a question to the loop and waits for the answer, from any goroutine. The loop answers between two slices of
// work, one question at a time, while it does nothing else: ask must only look at the View and take what that gives,
// which are copies or values that do not change. It must not keep the View, wait for anything, or write anywhere but to
// what the caller has made for it. What one View gives has a bound, so that a question costs no more than a slice of work:
// who wants more asks again, behind what it has.
//
// The error is ErrCrowded where too many wait, ErrEnded where the loop runs no more, that of ctx where the loop did not
// come to it in time, and else says how the question failed.
func (l *Loop) Ask(ctx context.Context, ask func(*View)) error {
	a := l.askers
	defer a.waiting.Add(-1)
	if a.waiting.Add(1) > mostAsking {
		return ErrCrowded
	}
	q := &question{ask: ask, done: make(chan error, 1)}
	select {
	case a.questions <- q:
		return <-q.done // the loop has it, and answers at once
	case <-a.ended:
		return ErrEnded
	case <-ctx.Done():
		return fmt.Errorf("the loop did not come to the question: %w", ctx.Err())
	}
}

// answer answers a question. One that fails is no reason for Services to fail.
func (q *question) answer(v *View) {
	defer func() {
		var err error
		if r := recover(); r != nil {
			err = fmt.Errorf("the question failed: %v", r)
		}
		q.done <- err
	}()
	q.ask(v)
}

// answerOne answers one of those who wait, so that they never hold up work for longer than one of them takes.
func (l *Loop) answerOne() {
	select {
	case q := <-l.askers.questions:
		q.answer(l.view())
	default:
	}
}

func (l *Loop) view() *View { return &View{loop: l} }
