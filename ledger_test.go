package main

import (
	"fmt"
	"maps"
	"slices"
)

// A ledger follows a log beside the store and keeps its own account of what
// must come of it: every tick of an enabled job is decided exactly once and in
// order, every pending row is consumed exactly once, and every execution ends
// at most once. It shares the schedule dialect with the product, and no rule.
type ledger struct {
	zone      string
	jobs      map[int64]*ledgerJob
	pending   map[int64]bool       // rows that wait
	started   map[int64]startedRun // every execution that was ever accepted
	running   map[int64]bool       // those of them that have not ended
	decisions map[tickKey]uint64   // tick → log index of what became of it
}

// ledgerJob is what the ledger expects of a job that is not deleted.
type ledgerJob struct {
	def     job
	next    int64 // the tick that must be decided next
	fired   int64 // the last one that was
	ticks   int64 // decided so far
	resets  int   // times that a wrong clock was set back
	deleted bool
}

// startedRun identifies an execution for whoever asks whether it came twice.
type startedRun struct {
	job, group, due int64
	slot, attempt   int
	cause           string
	ended           bool
}

// tickKey names a tick. A tick may come again after a wrong clock was set back.
type tickKey struct {
	job, due int64
	resets   int
}

func newLedger() *ledger {
	return &ledger{jobs: map[int64]*ledgerJob{}, pending: map[int64]bool{}, started: map[int64]startedRun{}, running: map[int64]bool{}, decisions: map[tickKey]uint64{}}
}

// observe takes note of one entry that the store has just applied. s is the
// store as it is then; the caller owns its writing side.
func (l *ledger) observe(s *store, e entry, res applied) error {
	if e.Kind != entryCommand || res.Err != nil || res.Repeated {
		return nil
	}
	c, err := decodeCommand(e.Data)
	if err != nil {
		return err
	}
	switch {
	case c.Found != nil:
		l.zone = c.Found.Timezone
	case c.Put != nil:
		for i, p := range c.Put {
			err = orElse(err, l.put(c.Now, p, res.Jobs[i]))
		}
	case c.Delete != nil:
		l.jobs[c.Delete.ID].deleted = true
	case c.Decide != nil:
		for i, d := range c.Decide {
			if res.Accepted[i] {
				err = orElse(err, l.decide(e.Index, c.Now, d, res.Started[i]))
			}
		}
	case c.Reset != nil:
		err = l.reset(s, c)
	}
	if err = orElse(err, l.followPending(s, c, res)); err == nil {
		err = l.followExecutions(s, c)
	}
	if err != nil {
		return fmt.Errorf("log entry %d: %w", e.Index, err)
	}
	return nil
}

func orElse(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (l *ledger) put(now int64, p jobPut, id int64) error {
	j := l.jobs[id]
	switch {
	case j == nil:
		j = &ledgerJob{next: never}
		l.jobs[id] = j
	case p.Keep:
		j.def = p.Job
		return nil
	case j.def.armed() && j.next != never && j.next <= now:
		return fmt.Errorf("job %s was changed at %d while its tick %d was undecided", p.Job.Name, now, j.next)
	}
	j.def, j.next = p.Job, p.Next
	if !p.Job.armed() || p.Next == never {
		return nil
	}
	after := max(now, j.fired)
	if p.Next <= after {
		return fmt.Errorf("job %s: next is %d after a change at %d with %d decided", p.Job.Name, p.Next, now, j.fired)
	}
	s := p.Job.schedule(l.zone)
	if want := nanosOf(s.next(timeOf(after))); p.Job.StartsAt == 0 && s.calendar != nil && want != p.Next {
		return fmt.Errorf("job %s: next is %d, want the first tick %d behind %d", p.Job.Name, p.Next, want, after)
	}
	return nil
}

// decide walks the ticks of a decision one by one.
func (l *ledger) decide(index uint64, now int64, d decision, started []int64) error {
	j := l.jobs[d.Job]
	switch {
	case j == nil || j.deleted:
		return fmt.Errorf("a tick of job %d, which is not there, was accepted", d.Job)
	case !j.def.armed():
		return fmt.Errorf("tick %d of %s was accepted, which is not enabled", d.Due, j.def.Name)
	case d.Due != j.next:
		return fmt.Errorf("tick %d of %s was accepted, want %d", d.Due, j.def.Name, j.next)
	case max(d.Due, d.Until) > now:
		return fmt.Errorf("tick %d of %s was decided before it was due", max(d.Due, d.Until), j.def.Name)
	}
	s, due, n := j.def.schedule(l.zone), d.Due, int64(0)
	for ; due != never && due <= max(d.Due, d.Until); due = j.def.within(s.next(timeOf(due))) {
		k := tickKey{d.Job, due, j.resets}
		if at, ok := l.decisions[k]; ok {
			return fmt.Errorf("tick %d of %s has a second outcome, the first is that of entry %d", due, j.def.Name, at)
		}
		l.decisions[k] = index
		j.fired = due
		n++
	}
	if n != max(1, d.Count) {
		return fmt.Errorf("a decision of %s counts %d ticks from %d to %d, want %d", j.def.Name, max(1, d.Count), d.Due, d.Until, n)
	}
	if d.Next != due {
		return fmt.Errorf("the tick of %s behind %d is said to be %d, want %d", j.def.Name, j.fired, d.Next, due)
	}
	if len(started) != 0 && len(started) != len(d.Targets) {
		return fmt.Errorf("tick %d of %s started %d executions for %d nodes", d.Due, j.def.Name, len(started), len(d.Targets))
	}
	j.ticks += n
	j.next = due
	return nil
}

// reset accepts what the command says, of those jobs that it fits.
func (l *ledger) reset(s *store, c *command) error {
	for _, r := range c.Reset {
		var fired int64
		if err := s.get("SELECT coalesce((SELECT fired FROM job_state WHERE job = ?), 0)", []any{r.Job}, &fired); err != nil {
			return err
		}
		j := l.jobs[r.Job]
		if j == nil || j.deleted || j.fired != r.Fired || fired != c.Now {
			continue
		}
		if r.Fired <= c.Now {
			return fmt.Errorf("job %s was set back to %d from %d, which is no future", j.def.Name, c.Now, r.Fired)
		}
		j.fired, j.next = c.Now, r.Next
		j.resets++
	}
	return nil
}

// followPending compares the rows that wait with those that waited before.
func (l *ledger) followPending(s *store, c *command, res applied) error {
	waits := map[int64]bool{}
	err := s.each("SELECT id, job FROM pending", nil, func(scan scanner) error {
		var id, job int64
		err := scan(&id, &job)
		waits[id] = true
		if !l.pending[id] && c.Done == nil && c.Close == nil {
			return fmt.Errorf("pending row %d appeared out of nothing", id)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i, d := range c.Run {
		switch {
		case d.Pending == 0:
		case !l.pending[d.Pending] && len(res.Started[i]) > 0:
			return fmt.Errorf("pending row %d was consumed a second time", d.Pending)
		case l.pending[d.Pending] && res.Accepted[i] && waits[d.Pending]:
			return fmt.Errorf("pending row %d was decided and waits still", d.Pending)
		case l.pending[d.Pending] && res.Accepted[i] && len(res.Started[i]) == 0:
			if err := l.recorded(s, res.Index); err != nil {
				return fmt.Errorf("pending row %d: %w", d.Pending, err)
			}
		}
		if res.Accepted[i] {
			delete(l.pending, d.Pending)
		}
	}
	for id := range l.pending {
		if !waits[id] && c.Delete == nil && c.Done == nil && c.Close == nil {
			return fmt.Errorf("pending row %d vanished without an outcome", id)
		}
	}
	l.pending = waits
	return nil
}

// recorded expects a skip on record among the keys of a log index.
func (l *ledger) recorded(s *store, index uint64) error {
	var n int
	err := s.get("SELECT count(*) FROM ticks WHERE id >= ? AND id < ?", []any{key(index, 0), key(index+1, 0)}, &n)
	if err == nil && n == 0 {
		err = fmt.Errorf("neither a run nor a skip came of it")
	}
	return err
}

// followExecutions takes note of what began and ended.
func (l *ledger) followExecutions(s *store, c *command) error {
	if c.Decide == nil && c.Run == nil && c.Done == nil && c.Close == nil {
		return nil
	}
	unfinished := map[int64]bool{}
	err := s.each("SELECT id, job, grp, slot, attempt, due, cause FROM executions WHERE finished = 0 ORDER BY id", nil, func(scan scanner) error {
		var id int64
		var r startedRun
		if err := scan(&id, &r.job, &r.group, &r.slot, &r.attempt, &r.due, &r.cause); err != nil {
			return err
		}
		unfinished[id] = true
		if was, ok := l.started[id]; ok && was.ended {
			return fmt.Errorf("execution %d ended and is unfinished again", id)
		}
		l.started[id], l.running[id] = r, true
		return nil
	})
	if err != nil {
		return err
	}
	for id := range l.running {
		if unfinished[id] {
			continue
		}
		if c.Done == nil && c.Close == nil {
			return fmt.Errorf("execution %d ended without a word of anybody", id)
		}
		r := l.started[id]
		r.ended = true
		l.started[id] = r
		delete(l.running, id)
	}
	return nil
}

// settled expects that nothing is due and undecided at now, that nothing waits
// or runs, and that the store has an outcome on record for each tick.
func (l *ledger) settled(s *store, now int64) error {
	for _, id := range slices.Sorted(maps.Keys(l.jobs)) {
		j := l.jobs[id]
		if l.gone(s, id) {
			continue
		}
		if j.def.armed() && j.next != never && j.next <= now {
			return fmt.Errorf("tick %d of %s was due at %d and has no outcome", j.next, j.def.Name, now)
		}
		var n int64
		err := s.get(`SELECT (SELECT count(*) FROM executions WHERE job = ?1 AND cause = 'tick' AND id = grp) + (SELECT coalesce(sum(count), 0) FROM ticks WHERE job = ?1 AND cause = 'tick')
			+ (SELECT coalesce(sum(ran + late + skipped + missed), 0) FROM tick_days WHERE job = ?1)`, []any{id}, &n)
		if err != nil {
			return err
		}
		if n != j.ticks {
			return fmt.Errorf("job %s has %d outcomes of ticks on record, want %d", j.def.Name, n, j.ticks)
		}
	}
	return nil
}

// gone reports whether a job was deleted, by somebody or by its own success.
func (l *ledger) gone(s *store, id int64) bool {
	var n int
	return s.get("SELECT count(*) FROM jobs WHERE id = ? AND deleted = 0", []any{id}, &n) != nil || n == 0
}
