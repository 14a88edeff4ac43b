// The cluster owns the order of changes: which commands are in the log, in
// which term, and who may put them there.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
)

const (
	proposalsMax  = 4096    // waiting for the writer; more callers wait in propose
	batchBytesMax = 4 << 20 // of entries that one fsync makes durable
)

var (
	errNotLeader = errors.New("no leader")
	errBusy      = errors.New("too many writes are waiting; try again")
	errUnknown   = errors.New("the write may or may not have been done; repeat it with the same request id")
	errTooLarge  = fmt.Errorf("the change is larger than %d bytes; make it smaller", commandBytesMax)
)

// entry is one place in the log.
type entry struct {
	Index, Term uint64
	Kind        entryKind
	Data        []byte
}

type entryKind int

const (
	entryNoop    entryKind = iota // a leader's first
	entryCommand                  // a change of the replicated state
	entryVoters                   // a change of who votes
)

// hardState is what a server must not forget between two answers.
type hardState struct {
	Term uint64
	Vote string // id of the server voted for in Term, '' for none
}

// proposal is a command on its way, and where its caller waits.
type proposal struct {
	data []byte
	done chan outcome // holds one
}

type outcome struct {
	applied
	err error
}

// cluster drives the log. propose may be called by anybody; run is the one
// goroutine that writes to the store.
type cluster struct {
	store     *store
	log       *slog.Logger
	lead      func(ctx context.Context, term uint64) error // the leader's work, for one term
	proposals chan proposal
	term      atomic.Uint64 // that this server leads in, 0: it does not
}

func newCluster(s *store, log *slog.Logger, lead func(context.Context, uint64) error) *cluster {
	return &cluster{store: s, log: log, lead: lead, proposals: make(chan proposal, proposalsMax)}
}

// leading reports whether this server leads.
func (c *cluster) leading() bool { return c.term.Load() != 0 }

// propose has the command logged, committed and applied, and returns what
// apply said of it. Errors: errNotLeader and errBusy if it was not appended;
// errUnknown if nobody can tell; ctx's if the caller did not wait.
func (c *cluster) propose(ctx context.Context, cmd *command) (applied, error) {
	data, err := cmd.encode()
	if err != nil {
		return applied{}, err
	}
	if len(data) > commandBytesMax {
		return applied{}, errTooLarge
	}
	if !c.leading() {
		return applied{}, errNotLeader
	}
	p := proposal{data, make(chan outcome, 1)}
	select {
	case c.proposals <- p:
	case <-ctx.Done():
		return applied{}, ctx.Err()
	}
	select {
	case o := <-p.done:
		return o.applied, o.err
	case <-ctx.Done():
		return applied{}, ctx.Err()
	}
}

// run leads until ctx ends. A server that is its own majority elects itself.
func (c *cluster) run(ctx context.Context) error {
	term, last, err := c.store.position()
	if err != nil {
		return err
	}
	term++
	noop := entry{Index: last + 1, Term: term, Kind: entryNoop}
	id, err := c.store.nodeID()
	if err != nil {
		return err
	}
	if err := c.store.persist(&hardState{term, id}, []entry{noop}); err != nil {
		return err
	}
	for done := uint64(0); done < noop.Index; {
		res, err := c.store.apply(noop.Index)
		if err != nil {
			return err
		}
		done = res[len(res)-1].Index
	}
	c.term.Store(term)
	defer c.term.Store(0)
	lead, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.lead(lead, term) }()
	err = c.write(ctx, ended, term, noop.Index)
	c.term.Store(0)
	stop()
	return errors.Join(err, <-ended)
}

func (c *cluster) write(ctx context.Context, ended chan error, term, last uint64) error {
	for {
		var batch []proposal
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- nil
			return err
		case p := <-c.proposals:
			batch = append(batch, p)
		}
		size := len(batch[0].data)
	gather:
		for size < batchBytesMax {
			select {
			case p := <-c.proposals:
				batch = append(batch, p)
				size += len(p.data)
			default:
				break gather
			}
		}
		entries := make([]entry, len(batch))
		for i, p := range batch {
			last++
			entries[i] = entry{Index: last, Term: term, Kind: entryCommand, Data: p.data}
		}
		if err := c.store.persist(nil, entries); err != nil {
			return err
		}
		for len(batch) > 0 {
			res, err := c.store.apply(last)
			if err != nil {
				return err
			}
			for i, r := range res {
				batch[i].done <- outcome{applied: r, err: r.Err}
			}
			batch = batch[len(res):]
		}
	}
}
