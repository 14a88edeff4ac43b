package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql/driver"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"hash/fnv"
	"io"
	"log/slog"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"modernc.org/sqlite"
)

var (
	simSeeds = flag.Int("sim.seeds", 300, "number of seeds to simulate")
	simSeed  = flag.Uint64("sim.seed", 0, "simulate this seed only, 0: the first sim.seeds")
)

const (
	simEvents = 10_000 // in one run, before healing
	simTail   = 60     // lines of the trace that a failure prints
	simBag    = 300    // messages in flight; more are lost
)

// A machine is what the simulated servers replicate, as one of them has it.
type machine interface {
	apply(e entry)
	keep()                       // what is applied survives a crash
	restart()                    // after a crash, from what was kept
	image() any                  // a copy of the state for other servers
	install(image any, rd ready) // takes the state of another server, which the write rd names, and keeps it
	sum() uint64                 // of the state, cheap: equal on every server at an applied index
	dump() string                // of the whole state, compared at the end
}

// A simEvent is one kind of thing that can happen. Weights are relative.
type simEvent struct {
	name   string
	weight int
	do     func(s *sim)
}

// A simPlan is what one run simulates: a state machine, events on top of those
// of the protocol, and what must hold besides its invariants. Hooks may be nil.
type simPlan struct {
	count      int                                 // of events, before healing
	moods      []int                               // how often things fail, see sim.mood; one is drawn at a time
	storms     int                                 // one change of the weather in so many brings a storm
	founders   func(s *sim) (founders, spares int) // spares: more servers, with empty disks
	newMachine func(n *simNode) machine            // n has an empty disk
	events     []simEvent
	started    func(n *simNode)           // n runs, with what was on its disk
	stopped    func(n *simNode)           // n has crashed
	touched    func(n *simNode)           // something happened to n
	persisted  func(n *simNode, rd ready) // n has made rd durable
	compacted  func(n *simNode)           // n has dropped the beginning of its log
	answered   func(s *sim, e entry)      // a server has applied e, which it proposed in this life
	finish     func(s *sim)               // after healing, when all servers are equal
}

// sim is one simulated cluster: servers with disks, a bag of messages, and one
// event at a time, all from one seed.
type sim struct {
	plan   simPlan
	rnd    *rand.Rand
	events []simEvent
	weight int
	nodes  []*simNode
	bag    []*simPacket
	told   []simReport // in order
	cut    [][]bool    // from, to
	mood   int         // how often things fail, in percent of the weights; it comes and goes

	// In a storm leaders are lost as soon as they are elected, or have committed
	// something: what follows is too rare to wait for (thesis, figure 3.7).
	stormy bool
	doomed *simNode // to be lost when it commits
	struck *simNode // to be lost after this event

	lines []string // tail of the trace
	hash  uint64   // of all of it
	count int      // events so far
	err   error    // first violation

	// What an all-knowing observer has seen.
	leaders map[uint64]string   // term → id
	chains  map[position]uint64 // position → hash of the log up to there
	history []uint64            // terms of committed entries, from index 1
	sums    map[uint64]uint64   // applied index → state
	stands  map[hardState]bool  // hand-overs: term of the leader, id of the heir
}

// A simPacket is a message in flight, with the data of a snapshot.
type simPacket struct {
	message
	data *simSnapshot
	due  int   // event before which it does not arrive
	from *raft // that has not been told yet what became of it; nil: it has, or need not be
}

// A simReport is what a driver tells of what was in flight.
type simReport struct {
	*simPacket
	from    *raft
	arrived bool
}

type simSnapshot struct {
	position
	chain  uint64
	voters []server
	image  any // of the machine, if it goes to another server
}

type simRecord struct {
	entry
	chain uint64
}

// simDisk is what survives a crash.
type simDisk struct {
	state hardState
	base  simSnapshot // where the log begins
	log   []simRecord
	saved simSnapshot // what the machine has kept
}

func (d *simDisk) last() uint64 { return d.base.Index + uint64(len(d.log)) }

func (d *simDisk) term(index uint64) uint64 {
	switch {
	case index == d.base.Index:
		return d.base.Term
	case index < d.base.Index || index > d.last():
		return 0
	}
	return d.log[index-d.base.Index-1].Term
}

type simNode struct {
	slot    int
	self    server
	lives   int // disks this name has had
	disk    simDisk
	machine machine
	left    bool     // asked to be no voter
	removed position // with this entry, if it is committed
	slow    bool     // disk
	paused  bool
	rate    int // of the clock, in percent

	// Lost in a crash.
	raft     *raft // nil: down
	write    *ready
	incoming map[position]*simSnapshot
	trimmed  uint64 // dropped from the log, raft not yet told
	applied  simSnapshot
	waiting  []position // of what it proposed
	ticks    int
	heard    map[string]int // as a leader: id → ticks when it last answered
	writeAge int
}

func newSim(seed uint64, plan simPlan) *sim {
	s := &sim{
		plan: plan, rnd: rand.New(rand.NewPCG(seed, 1)),
		leaders: map[uint64]string{}, chains: map[position]uint64{}, sums: map[uint64]uint64{}, stands: map[hardState]bool{},
	}
	for _, e := range slices.Concat(protocolEvents, plan.events) {
		s.events = append(s.events, e)
		s.weight += e.weight
	}
	return s
}

func (s *sim) addServers(count int) {
	for i := range count {
		n := &simNode{slot: i, rate: 100}
		n.self.Name = string(rune('a' + i))
		s.wipe(n)
		s.nodes = append(s.nodes, n)
		s.cut = append(s.cut, make([]bool, count))
	}
}

// found makes a cluster, and more empty servers.
func (s *sim) found() {
	founders, spares := s.plan.founders(s)
	s.addServers(founders + spares)
	var voters []server
	for _, i := range s.rnd.Perm(founders + spares)[:founders] {
		voters = append(voters, s.nodes[i].self)
	}
	for _, n := range s.nodes {
		if slices.Contains(voters, n.self) {
			state, first := firstEntry(voters)
			s.persist(n, ready{State: &state, Entries: []entry{first}})
		}
		s.start(n)
	}
}

// run simulates and returns the first violation.
func (s *sim) run() (err error) {
	defer func() {
		switch p := recover(); {
		case p == nil:
		case s.err != nil:
			err = s.err // what follows from it
		default:
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	s.found()
	for s.count = 0; s.count < s.plan.count && s.err == nil; s.count++ {
		at := s.rnd.IntN(s.weight)
		for _, e := range s.events {
			if at -= e.weight; at < 0 {
				e.do(s)
				break
			}
		}
		s.strike()
	}
	s.heal()
	return s.err
}

func (s *sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf(format, args...)
	}
}

func (s *sim) log(format string, args ...any) {
	line := fmt.Sprintf("%5d ", s.count) + fmt.Sprintf(format, args...)
	h := fnv.New64a()
	h.Write(binary.BigEndian.AppendUint64([]byte(line), s.hash))
	s.hash = h.Sum64()
	if s.lines = append(s.lines, line); len(s.lines) > 4*simTail {
		s.lines = slices.Clone(s.lines[len(s.lines)-simTail:])
	}
}

// Events

var protocolEvents = []simEvent{
	{"tick", 12000, func(s *sim) { s.tick(s.any(func(n *simNode) bool { return s.rnd.IntN(200) < n.rate })) }},
	{"deliver", 9000, func(s *sim) { s.deliver() }},
	{"report", 4000, func(s *sim) { s.tellFirst() }},
	{"persist", 3000, func(s *sim) {
		s.finishWrite(s.any(func(n *simNode) bool { return n.write != nil && (!n.slow || s.rnd.IntN(40) == 0) }))
	}},
	{"members", 300, func(s *sim) { s.members(s.any(func(*simNode) bool { return true })) }},
	{"compact", 200, func(s *sim) { s.compact(s.any(func(*simNode) bool { return true })) }},
	{"weather", 60, func(s *sim) {
		if s.stormy && s.rnd.IntN(4) > 0 {
			return
		}
		s.mood = s.plan.moods[s.rnd.IntN(len(s.plan.moods))]
		if s.stormy = s.rnd.IntN(s.plan.storms) == 0; s.stormy {
			s.mood = 5
		}
	}},
	{"heal", 200, func(s *sim) {
		if !s.stormy {
			s.partition("heal", func(from, to int) bool { return false })
		}
	}},
	{"restart", 500, func(s *sim) {
		if n := s.pick(func(n *simNode) bool { return n.raft == nil }); n != nil {
			s.start(n)
		}
	}},
	{"resume", 300, func(s *sim) {
		if n := s.pick(func(n *simNode) bool { return n.paused }); n != nil {
			s.resume(n)
		}
	}},
	{"quick", 200, func(s *sim) {
		if n := s.pick(func(n *simNode) bool { return n.slow }); n != nil {
			n.slow = false
		}
	}},
	{"rejoin", 150, func(s *sim) {
		if n := s.pick(func(n *simNode) bool { return n.left }); n != nil {
			s.leave(n, false)
		}
	}},
	fault("crash", 100, func(s *sim) { s.crash(s.any(func(*simNode) bool { return true })) }),
	fault("crash leader", 100, func(s *sim) { s.crash(s.pick(leading)) }),
	fault("power cut", 10, func(s *sim) {
		for _, n := range s.nodes {
			if n.raft != nil {
				s.crash(n)
			}
		}
	}),
	fault("pause", 50, func(s *sim) {
		if n := s.any(func(*simNode) bool { return true }); n != nil {
			s.log("pause %s", n.self.Name)
			n.paused = true
		}
	}),
	fault("slow", 250, func(s *sim) { s.nodes[s.rnd.IntN(len(s.nodes))].slow = true }),
	fault("drift", 30, func(s *sim) { s.nodes[s.rnd.IntN(len(s.nodes))].rate = 50 + s.rnd.IntN(150) }),
	fault("clock jump", 150, func(s *sim) {
		n := s.nodes[s.rnd.IntN(len(s.nodes))]
		for range 5 + s.rnd.IntN(2*simConfig.electionTicks) {
			s.tick(s.running(n))
		}
	}),
	fault("split", 40, func(s *sim) {
		side := s.rnd.Uint32()
		s.partition("split", func(from, to int) bool { return side>>from&1 != side>>to&1 })
	}),
	fault("one way", 40, func(s *sim) {
		mute, deaf := s.rnd.IntN(len(s.nodes)), s.rnd.Uint32()
		s.partition("one way", func(from, to int) bool { return from == mute && deaf>>to&1 == 1 })
	}),
	fault("isolate leader", 100, func(s *sim) {
		if n := s.pick(leading); n != nil {
			s.isolate(n)
		}
	}),
	fault("bridge", 20, func(s *sim) {
		side, bridge := s.rnd.Uint32(), s.rnd.IntN(len(s.nodes))
		s.partition("bridge", func(from, to int) bool { return from != bridge && to != bridge && side>>from&1 != side>>to&1 })
	}),
	fault("hand over", 60, func(s *sim) {
		if n := s.pick(leading); n != nil {
			s.touch(n, "hand over", func() { n.raft.transfer() })
		}
	}),
	fault("remove", 30, func(s *sim) { s.remove() }),
	fault("replace", 40, func(s *sim) { s.replace() }),
}

// fault makes an event as frequent as the mood has it.
func fault(name string, weight int, do func(s *sim)) simEvent {
	return simEvent{name, weight * 2, func(s *sim) {
		if s.rnd.IntN(200) < s.mood {
			do(s)
		}
	}}
}

func leading(n *simNode) bool { return n.raft != nil && !n.paused && n.raft.role == roleLeader }

// pick returns one of the servers for which ok holds, nil if none.
func (s *sim) pick(ok func(n *simNode) bool) *simNode {
	start := s.rnd.IntN(len(s.nodes))
	for i := range s.nodes {
		if n := s.nodes[(start+i)%len(s.nodes)]; ok(n) {
			return n
		}
	}
	return nil
}

// any returns a server that runs, nil if the one that was drawn does not.
func (s *sim) any(ok func(n *simNode) bool) *simNode {
	n := s.nodes[s.rnd.IntN(len(s.nodes))]
	if s.running(n) == nil || !ok(n) {
		return nil
	}
	return n
}

func (s *sim) running(n *simNode) *simNode {
	if n.raft == nil || n.paused {
		return nil
	}
	return n
}

func (s *sim) tick(n *simNode) {
	if n == nil {
		return
	}
	s.touch(n, "tick", func() {
		n.ticks++
		if n.write != nil {
			n.writeAge++
		}
		n.raft.stuck = n.write != nil && n.writeAge >= simConfig.electionTicks
		n.raft.tick()
	})
	if leading(n) {
		s.checkOffice(n)
	}
}

// deliver takes a message out of the bag, mostly an old one. It may be lost,
// or stay in the bag and come again.
func (s *sim) deliver() {
	if len(s.bag) == 0 {
		return
	}
	i := s.rnd.IntN(len(s.bag))
	if s.rnd.IntN(4) > 0 {
		i = min(i, s.rnd.IntN(3))
	}
	p := s.bag[i]
	if p.due > s.count {
		s.bag = append(slices.Delete(s.bag, i, i+1), p)
		return
	}
	if s.rnd.IntN(5000) >= s.mood {
		s.bag = slices.Delete(s.bag, i, i+1)
	}
	from, to := s.named(p.From), s.named(p.To)
	switch {
	case to.raft == nil || s.cut[from.slot][to.slot] || s.rnd.IntN(5000) < s.mood:
		s.report(p, false)
	case !to.paused:
		s.receive(to, p)
	case s.rnd.IntN(50) > 0:
		s.bag = append(s.bag, p)
	default:
		s.report(p, false)
	}
}

// report has the sender's driver say, once, what became of something large.
func (s *sim) report(p *simPacket, arrived bool) {
	if p.from != nil {
		s.told = append(s.told, simReport{p, p.from, arrived})
		p.from = nil
	}
}

// tellFirst has the protocol hear the first of the reports, if it lives.
func (s *sim) tellFirst() {
	if len(s.told) == 0 {
		return
	}
	r := s.told[0]
	s.told = s.told[1:]
	n := s.named(r.From)
	switch {
	case n.raft != r.from:
	case n.paused:
		s.told = append(s.told, r)
	case r.arrived:
		s.touch(n, "delivered", func() { n.raft.delivered(r.To.ID, r.Number, r.Prev.Index+uint64(len(r.Entries))) })
	default:
		s.touch(n, "undelivered", func() { n.raft.undelivered(r.To.ID, r.Number) })
	}
}

func (s *sim) receive(to *simNode, p *simPacket) {
	r := to.raft
	if p.From == to.self {
		s.report(p, false)
		return // to a former disk of its own
	}
	if p.data != nil {
		to.incoming[p.data.position] = p.data
	}
	if p.Kind == msgAppendReply && p.Term == r.state.Term {
		to.heard[p.From.ID] = to.ticks
	}
	loyal := r.role == roleLeader || r.leader != server{} && r.elapsed < r.cfg.electionTicks
	term := r.state.Term
	s.touch(to, "", func() {
		s.log("%s", p.describe())
		err := r.step(p.message)
		if p.To != to.self && errors.Is(err, errMisdirected) {
			err = nil
		}
		if err != nil {
			s.fail("%s: step: %v", to.self.Name, err)
		}
	})
	s.report(p, s.rnd.IntN(2000) >= s.mood) // sometimes only the answer is lost
	vote := p.Kind == msgPreVote || p.Kind == msgVote
	if vote && loyal && r.state.Term != term && !s.stands[hardState{p.Term - 1, p.From.ID}] {
		s.fail("12: %s left the working leader of term %d because of a %s", to.self.Name, term, p.describe())
	}
}

// propose has the leader n append commands; what becomes of them comes through
// answered, or never.
func (s *sim) propose(n *simNode, data ...[]byte) {
	s.touch(n, "propose", func() {
		first, err := n.raft.propose(data...)
		for i := range data {
			if err == nil {
				n.waiting = append(n.waiting, position{first + uint64(i), n.raft.state.Term})
			}
		}
	})
}

// members tells a server who else is there.
func (s *sim) members(n *simNode) {
	if n == nil {
		return
	}
	var list []server
	for _, m := range s.nodes {
		if m.raft != nil && s.rnd.IntN(10) > 0 { // who has left is listed until everybody knows
			list = append(list, m.self)
		}
	}
	s.touch(n, "members", func() { n.raft.setLearners(list) })
}

func (s *sim) compact(n *simNode) {
	if n == nil || n.disk.saved.Index <= n.disk.base.Index {
		return
	}
	drop := 1 + s.rnd.IntN(int(n.disk.saved.Index-n.disk.base.Index))
	last := n.disk.log[drop-1]
	n.disk.base = simSnapshot{position: position{last.Index, last.Term}, chain: last.chain}
	n.disk.log = slices.Clone(n.disk.log[drop:])
	n.trimmed = last.Index
	if s.plan.compacted != nil {
		s.plan.compacted(n)
	}
	s.log("compact %s to %d", n.self.Name, n.trimmed)
}

func (s *sim) partition(name string, cut func(from, to int) bool) {
	s.log("%s", name)
	for from := range s.nodes {
		for to := range s.nodes {
			s.cut[from][to] = cut(from, to)
		}
	}
}

func (s *sim) strike() {
	n := s.struck
	s.struck = nil
	switch {
	case n == nil || n.raft == nil:
	case s.rnd.IntN(3) == 0:
		s.crash(n)
		s.isolate(s.nodes[s.rnd.IntN(len(s.nodes))]) // perhaps the one that has what n had
	default:
		s.isolate(n)
	}
}

func (s *sim) isolate(n *simNode) {
	s.partition("isolate "+n.self.Name, func(from, to int) bool { return from == n.slot || to == n.slot })
}

func (s *sim) crash(n *simNode) {
	if n == nil {
		return
	}
	if n.write != nil { // done up to somewhere, and nobody was told
		done := ready{State: n.write.State}
		if part := s.rnd.IntN(4); part == 0 {
			done = ready{}
		} else if part == 1 {
			done.Snapshot = n.write.Snapshot
		} else if part == 2 {
			done = *n.write
		}
		s.persist(n, done)
	}
	s.log("crash %s", n.self.Name)
	s.stop(n)
}

func (s *sim) stop(n *simNode) {
	n.raft, n.write, n.waiting = nil, nil, nil
	if s.plan.stopped != nil {
		s.plan.stopped(n)
	}
}

func (s *sim) resume(n *simNode) {
	n.paused = false
	if n.raft != nil && s.rnd.IntN(5) > 0 {
		s.touch(n, "resume", func() { n.raft.become(roleFollower, server{}) })
	}
}

// remove has the leader remove a voter. With a dead one left behind it would
// be the operator's fault if no majority remained.
func (s *sim) remove() {
	n := s.pick(leading)
	if n == nil || len(n.raft.voters()) < 3 || s.deadVoter() {
		return
	}
	voters := n.raft.voters()
	v := voters[s.rnd.IntN(len(voters))]
	leaver := s.named(v)
	s.leave(leaver, true)
	if n.raft == nil {
		return // struck as it left
	}
	s.touch(n, "remove "+v.Name, func() {
		if index, err := n.raft.removeVoter(v.ID); err == nil {
			leaver.removed = position{index, n.raft.state.Term}
		} else {
			s.leave(leaver, false)
		}
	})
}

// leave has a server say that it leaves, or that it does not.
func (s *sim) leave(n *simNode, left bool) {
	n.left, n.removed = left, position{}
	if n.raft != nil {
		n.raft.leaving = left
	}
}

// checkLeft: who has left, and whose removal is committed, is no voter for any
// later leader.
func (s *sim) checkLeft(leader *simNode) {
	for _, n := range s.nodes {
		if n.removed.Index > 0 && n.removed.Term == s.historyTerm(n.removed.Index) && leader.raft.log.last >= n.removed.Index &&
			leader.raft.state.Term >= n.removed.Term && leader.raft.isVoter(n.self.ID) {
			s.fail("%s counts %s, which left with entry %v, as a voter", leader.self.Name, n.self.Name, n.removed)
		}
	}
}

// replace gives a server an empty disk, if as far as anybody can know all
// other voters have theirs.
func (s *sim) replace() {
	n := s.nodes[s.rnd.IntN(len(s.nodes))]
	few := slices.ContainsFunc(s.voterSets(), func(voters []server) bool { return len(voters) < 3 })
	if few || s.deadVoter() {
		return
	}
	s.log("replace %s", n.self.Name)
	s.stop(n)
	s.wipe(n)
	if s.rnd.IntN(2) == 0 {
		s.start(n)
	}
	if s.rnd.IntN(2) == 0 {
		s.crash(s.pick(leading))
	}
}

func (s *sim) wipe(n *simNode) {
	n.lives++
	n.left, n.removed = false, position{}
	n.self.ID = fmt.Sprintf("%s%d", n.self.Name, n.lives)
	n.disk, n.machine = simDisk{}, s.plan.newMachine(n)
}

// voterSets are all lists that a server may yet come to use.
func (s *sim) voterSets() (sets [][]server) {
	entries := func(list []entry) {
		for _, e := range list {
			if e.Kind == entryVoters {
				voters, _ := decodeVoters(e.Data)
				sets = append(sets, voters)
			}
		}
	}
	for _, n := range s.nodes {
		r := n.raft
		if r == nil {
			r = s.open(n)
		}
		for _, v := range r.log.voters {
			if v.Index > 0 {
				sets = append(sets, v.Voters)
			}
		}
	}
	for _, p := range s.bag {
		entries(p.Entries)
	}
	return sets
}

func (s *sim) deadVoter() bool {
	return slices.ContainsFunc(s.voterSets(), func(voters []server) bool {
		return slices.ContainsFunc(voters, func(v server) bool { return s.named(v).self != v })
	})
}

func (s *sim) named(v server) *simNode { return s.nodes[v.Name[0]-'a'] }

// The driver

var simConfig = raftConfig{heartbeatTicks: 2, electionTicks: 10, stepTicks: 3, snapshotTicks: 20}

// open makes a raft of what is on the disk.
func (s *sim) open(n *simNode) *raft {
	cfg := simConfig
	cfg.self = n.self
	return newRaft(cfg, n.disk.read(), rand.New(rand.NewPCG(s.rnd.Uint64(), 2)))
}

// read returns what a server finds when it starts.
func (d *simDisk) read() saved {
	disk := saved{State: d.state, Base: d.base.position, Last: d.last(), Applied: d.saved.Index}
	disk.Voters = []voterSet{{d.saved.Index, d.saved.voters}}
	term := uint64(0)
	for _, e := range d.log {
		if e.Term != term {
			term = e.Term
			disk.Terms = append(disk.Terms, position{e.Index, e.Term})
		}
		if e.Kind == entryVoters && e.Index > d.saved.Index {
			voters, _ := decodeVoters(e.Data)
			disk.Voters = append(disk.Voters, voterSet{e.Index, voters})
		}
	}
	return disk
}

func (s *sim) start(n *simNode) {
	s.log("start %s", n.self.ID)
	n.raft, n.paused, n.trimmed = s.open(n), false, 0
	n.raft.leaving = n.left
	n.applied = n.disk.saved
	n.machine.restart()
	n.incoming, n.heard = map[position]*simSnapshot{}, map[string]int{}
	if s.plan.started != nil {
		s.plan.started(n)
	}
}

// touch lets something happen to one server, does what it asks for, and checks.
func (s *sim) touch(n *simNode, what string, do func()) {
	if what != "" {
		s.log("%s %s", n.self.Name, what)
	}
	before := simView{n.raft.role, n.raft.state.Term, n.raft.commit, n.raft.voters()}
	do()
	s.check(n, before)
	if s.rnd.IntN(5) > 0 {
		s.drive(n)
	}
	if s.plan.touched != nil {
		s.plan.touched(n)
	}
}

func (s *sim) drive(n *simNode) {
	if n.trimmed > 0 && s.rnd.IntN(3) == 0 {
		n.raft.log.compact(n.trimmed)
		n.trimmed = 0
	}
	for {
		rd, ok := n.raft.ready()
		if err := n.raft.check(); err != nil {
			s.fail("%s: %v", n.self.Name, err)
		}
		if !ok {
			return
		}
		for _, m := range rd.Messages {
			s.send(n, m)
		}
		if len(rd.Entries) == 0 || rd.Commit < rd.Entries[0].Index {
			s.apply(n, rd.Commit)
		}
		if rd.writes() {
			n.write, n.writeAge = &rd, 0
		}
	}
}

// send puts a message into the bag, with what the driver adds from disk.
func (s *sim) send(n *simNode, m message) {
	s.checkMessage(n, m)
	p := &simPacket{message: m}
	if m.isBulk() {
		p.from = n.raft
	}
	switch {
	case m.Kind == msgSnapshot:
		data := n.applied
		data.image = n.machine.image()
		p.Prev, p.Voters, p.data = data.position, data.voters, &data
	case m.Kind == msgTimeoutNow:
		s.stands[hardState{m.Term, m.To.ID}] = true
	case m.Kind == msgAppend && len(m.Entries) == 0 && m.Last > m.Prev.Index:
		if m.Prev.Index < n.disk.base.Index {
			s.report(p, false)
			return
		}
		from := m.Prev.Index - n.disk.base.Index
		records := n.disk.log[from:][:m.Last-m.Prev.Index]
		for _, e := range records[:1+s.rnd.IntN(len(records))] {
			p.Entries = append(p.Entries, e.entry)
		}
	}
	if s.rnd.IntN(5000) < s.mood {
		p.due = s.count + s.rnd.IntN(2000)
	}
	if s.bag = append(s.bag, p); len(s.bag) > simBag {
		s.report(s.bag[0], false)
		s.bag = slices.Delete(s.bag, 0, 1)
	}
}

func (s *sim) finishWrite(n *simNode) {
	if n == nil {
		return
	}
	rd := *n.write
	n.write = nil
	s.persist(n, rd)
	s.touch(n, "persisted", func() { n.raft.persisted(rd) })
}

// persist puts a write on the disk.
func (s *sim) persist(n *simNode, rd ready) {
	d := &n.disk
	if st := rd.State; st != nil {
		if st.Term < d.state.Term || st.Term == d.state.Term && d.state.Vote != "" && st.Vote != d.state.Vote {
			s.fail("1: %s: disk has %v, is to get %v", n.self.Name, d.state, *st)
		}
		d.state = *st
	}
	if rd.Snapshot != nil {
		s.install(n, n.incoming[rd.Snapshot.position], rd)
	}
	for _, e := range rd.Entries {
		s.appendDisk(n, e)
	}
	if s.plan.persisted != nil {
		s.plan.persisted(n, rd)
	}
	if rd.Commit <= n.applied.Index {
		return
	}
	for i := n.applied.Index + 1; i <= rd.Commit; i++ { // by a sole voter, with the write
		s.committed(n, i)
	}
	s.apply(n, rd.Commit)
	s.keep(n)
}

func (s *sim) install(n *simNode, data *simSnapshot, rd ready) {
	s.log("%s install %v", n.self.Name, data.position)
	if data.Index <= n.applied.Index {
		s.fail("2: %s: snapshot %v over applied %v", n.self.Name, data.position, n.applied.position)
	}
	n.disk.base = simSnapshot{position: data.position, chain: data.chain}
	n.disk.log = nil
	n.applied = simSnapshot{position: data.position, chain: data.chain, voters: data.voters}
	n.disk.saved = n.applied
	n.machine.install(data.image, rd)
}

// keep lets what is applied survive a crash.
func (s *sim) keep(n *simNode) {
	n.disk.saved = n.applied
	n.machine.keep()
}

func (s *sim) appendDisk(n *simNode, e entry) {
	d := &n.disk
	at := int(e.Index) - int(d.base.Index) - 1
	if at < 0 || at > len(d.log) {
		s.fail("4: %s: write of entry %d, log has %d to %d", n.self.Name, e.Index, d.base.Index+1, d.last())
		return
	}
	d.log = d.log[:at]
	chain := d.base.chain
	if at > 0 {
		chain = d.log[at-1].chain
	}
	chain = mix(mix(chain, e.Term), uint64(e.Kind))
	for _, b := range e.Data {
		chain = mix(chain, uint64(b))
	}
	pos := position{e.Index, e.Term}
	if seen, ok := s.chains[pos]; ok && seen != chain {
		s.fail("10: %s: the log up to %v is not what others have", n.self.Name, pos)
	}
	s.chains[pos] = chain
	d.log = append(d.log, simRecord{e, chain})
}

func mix(h, v uint64) uint64 {
	h = (h ^ v) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

func (s *sim) apply(n *simNode, commit uint64) {
	for n.applied.Index < commit {
		at := n.applied.Index - n.disk.base.Index
		if at >= uint64(len(n.disk.log)) {
			s.fail("%s: entry %d is to be applied and not on disk", n.self.Name, n.applied.Index+1)
			return
		}
		e := n.disk.log[at]
		n.applied.position, n.applied.chain = position{e.Index, e.Term}, e.chain
		if e.Kind == entryVoters {
			n.applied.voters, _ = decodeVoters(e.Data)
		}
		n.machine.apply(e.entry)
		s.applied(n, e.entry)
	}
	if s.rnd.IntN(4) == 0 { // the rest is applied again after a crash
		s.keep(n)
	}
}

func (s *sim) applied(n *simNode, e entry) {
	sum := n.machine.sum()
	if seen, ok := s.sums[e.Index]; ok && seen != sum {
		s.fail("%s: other state than elsewhere after entry %d", n.self.Name, e.Index)
	}
	s.sums[e.Index] = sum
	if e.Term != s.historyTerm(e.Index) {
		s.fail("11: %s applied (%d, %d), committed was term %d", n.self.Name, e.Index, e.Term, s.historyTerm(e.Index))
	}
	own := slices.Contains(n.waiting, position{e.Index, e.Term})
	n.waiting = slices.DeleteFunc(n.waiting, func(p position) bool { return p.Index <= e.Index })
	if own && s.plan.answered != nil {
		s.plan.answered(s, e)
	}
}

// Invariants

func (s *sim) historyTerm(index uint64) uint64 {
	if index == 0 || index > uint64(len(s.history)) {
		return 0
	}
	return s.history[index-1]
}

// simView is what the observer saw of a server before an event.
type simView struct {
	role   raftRole
	term   uint64
	commit uint64
	voters []server
}

// check tests what may have changed with the last event, on one server.
func (s *sim) check(n *simNode, before simView) {
	r := n.raft
	if err := r.check(); err != nil {
		s.fail("%s: %v", n.self.Name, err)
	}
	if d := r.log.durable; r.snap == nil && n.disk.term(d) != r.log.term(d) {
		s.fail("%s: takes (%d, %d) for durable, the disk has term %d there", n.self.Name, d, r.log.term(d), n.disk.term(d))
	}
	if r.state.Term < before.term || r.commit < before.commit {
		s.fail("%s: term %d to %d, commit %d to %d", n.self.Name, before.term, r.state.Term, before.commit, r.commit)
	}
	for i := max(before.commit+1, r.log.base.Index); i <= r.commit; i++ {
		s.committed(n, i)
	}
	if r.role == roleLeader {
		if r.commit > before.commit {
			s.checkCopies(n, before.voters)
			if n == s.doomed {
				s.struck = n
			}
		}
		s.checkLeader(n, before.role != roleLeader || r.state.Term != before.term)
		s.checkLeft(n)
	}
	if before.role != r.role || before.term != r.state.Term {
		s.log("%s is %d in term %d, log %v, commit %d", n.self.Name, r.role, r.state.Term, r.log.end(), r.commit)
	}
}

func (s *sim) committed(n *simNode, i uint64) {
	t := n.raft.log.term(i)
	switch {
	case i == uint64(len(s.history))+1:
		s.history = append(s.history, t)
	case i > uint64(len(s.history)) || s.history[i-1] != t:
		s.fail("11: %s has committed (%d, %d), before it was term %d", n.self.Name, i, t, s.historyTerm(i))
	}
}

func (s *sim) checkLeader(n *simNode, fresh bool) {
	r := n.raft
	if other, ok := s.leaders[r.state.Term]; ok && other != n.self.ID {
		s.fail("9: %s and %s lead in term %d", other, n.self.ID, r.state.Term)
	}
	s.leaders[r.state.Term] = n.self.ID
	if !fresh {
		return
	}
	if s.doomed = nil; s.stormy || s.rnd.IntN(200) < s.mood {
		if s.doomed = n; s.rnd.IntN(2) == 0 {
			s.struck = n
		}
	}
	n.heard = map[string]int{}
	for _, v := range r.voters() {
		n.heard[v.ID] = n.ticks
	}
	// A late majority of an old term may make a leader that knows nothing of
	// what later terms committed; it can commit nothing.
	last := uint64(len(s.history))
	for last > 0 && s.history[last-1] >= r.state.Term {
		last--
	}
	if last >= r.log.base.Index && r.log.term(last) != s.historyTerm(last) {
		s.fail("11: %s leads in term %d without the committed entry (%d, %d)", n.self.Name, r.state.Term, last, s.historyTerm(last))
	}
}

// checkCopies: what a leader commits is on the disks of a majority. A disk that
// was lost since had it.
func (s *sim) checkCopies(n *simNode, voters []server) {
	last, copies := n.raft.commit, 0
	for _, v := range voters {
		d := &s.named(v).disk
		if s.named(v).self != v || d.base.Index >= last || d.term(last) == n.raft.log.term(last) {
			copies++
		}
	}
	if copies < majority(len(voters)) {
		s.fail("11: %s commits entry %d, which %d of %d voters have on disk", n.self.Name, last, copies, len(voters))
	}
}

// checkOffice: a leader that no majority has answered for an election timeout
// does not stay, nor does one with a disk that hangs.
func (s *sim) checkOffice(n *simNode) {
	alive, voters := 0, n.raft.voters()
	for _, v := range voters {
		heard, ok := n.heard[v.ID]
		if !ok {
			n.heard[v.ID], heard = n.ticks, n.ticks
		}
		if v == n.self || n.ticks-heard < simConfig.electionTicks {
			alive++
		}
	}
	if alive < majority(len(voters)) {
		s.fail("%s leads without a majority", n.self.Name)
	}
	if n.write != nil && n.writeAge >= simConfig.electionTicks && len(voters) > 1 {
		s.fail("%s leads with a disk that hangs", n.self.Name)
	}
}

// checkMessage: what a message promises is on disk when it leaves.
func (s *sim) checkMessage(n *simNode, m message) {
	d := &n.disk
	switch {
	case m.Kind == msgVoteYes && (d.state.Term < m.Term || d.state.Term == m.Term && d.state.Vote != m.To.ID):
		s.fail("%s: vote for %s in term %d leaves, on disk is %v", n.self.Name, m.To.Name, m.Term, d.state)
	case m.Kind == msgVote && d.state.Term < m.Term:
		s.fail("%s: stands in term %d, on disk is %v", n.self.Name, m.Term, d.state)
	case m.Kind == msgAppendReply && m.Match > d.last():
		s.fail("%s: entry %d is acknowledged and not on disk", n.self.Name, m.Match)
	}
}

// heal ends all faults; then a leader must be found, every server that wants
// to must become a voter, and all must be equal, within a bound.
func (s *sim) heal() {
	if s.err != nil {
		return
	}
	s.partition("heal for good", func(from, to int) bool { return false })
	s.mood = 0
	for _, n := range s.nodes {
		n.slow, n.rate = false, 100
		if n.raft == nil {
			s.start(n)
		} else if n.paused {
			s.resume(n)
		}
	}
	for round := range 40 * simConfig.electionTicks {
		s.round()
		if s.err != nil {
			return
		}
		if s.settled() {
			s.log("settled after %d rounds", round)
			s.finish()
			return
		}
	}
	for _, n := range s.nodes {
		st := n.raft.status()
		s.log("%s left %v applied %v: %+v", n.self.ID, n.left, n.applied.position, st)
	}
	s.fail("not settled")
}

// round is a tick in which nothing fails.
func (s *sim) round() {
	for _, n := range s.nodes {
		s.members(n)
		s.tick(n)
		s.drive(n)
		if n.write != nil {
			s.finishWrite(n)
		}
	}
	for len(s.bag) > 0 && s.err == nil {
		p := s.bag[0]
		s.bag = s.bag[1:]
		s.receive(s.named(p.To), p)
	}
	for len(s.told) > 0 && s.err == nil {
		s.tellFirst()
	}
}

// settled reports whether one server leads, and all that want to are voters
// and have applied everything.
func (s *sim) settled() bool {
	var leaders []*simNode
	for _, n := range s.nodes {
		if leading(n) {
			leaders = append(leaders, n)
		}
	}
	if len(leaders) != 1 {
		return false
	}
	r := leaders[0].raft
	for _, n := range s.nodes {
		if !n.left && (n.raft.leader != leaders[0].self || !r.isVoter(n.self.ID) || n.applied.Index != r.log.last) {
			return false
		}
	}
	return r.commit == r.log.last && r.commit >= r.first
}

func (s *sim) finish() {
	s.compare()
	if s.plan.finish != nil {
		s.plan.finish(s)
	}
}

// compare expects the same state on all servers that are, or want to be, voters.
func (s *sim) compare() {
	leader := s.pick(leading)
	dump := leader.machine.dump()
	for _, n := range s.nodes {
		if got := n.machine.dump(); !n.left && got != dump {
			s.fail("%s and %s differ:\n%s\n%s", n.self.Name, leader.self.Name, got, dump)
		}
	}
}

// A chain is the plainest machine: a hash of all entries, and the proposals.
type chain struct {
	hash uint64
	ids  []uint64
	kept *chain
}

func (c *chain) apply(e entry) {
	c.hash = mix(mix(c.hash, e.Index), uint64(e.Kind))
	if e.Kind == entryCommand {
		c.ids = append(c.ids, binary.BigEndian.Uint64(e.Data))
		c.hash = mix(c.hash, c.ids[len(c.ids)-1])
	}
}

func (c *chain) keep()    { c.kept = c.image().(*chain) }
func (c *chain) restart() { c.hash, c.ids = c.kept.hash, c.kept.ids }

func (c *chain) image() any { return &chain{hash: c.hash, ids: slices.Clip(c.ids)} }

func (c *chain) install(image any, _ ready) {
	c.kept = image.(*chain)
	c.restart()
}

func (c *chain) sum() uint64  { return c.hash }
func (c *chain) dump() string { return fmt.Sprintf("%x %v", c.hash, c.ids) }

func chainPlan() simPlan {
	var proposed uint64   // ids given to proposals
	var answered []uint64 // those that are there to stay
	propose := func(s *sim) {
		if n := s.pick(leading); n != nil {
			var data [][]byte
			for range 1 + s.rnd.IntN(3) {
				proposed++
				data = append(data, binary.BigEndian.AppendUint64(nil, proposed))
			}
			s.propose(n, data...)
		}
	}
	return simPlan{
		count:      simEvents,
		moods:      []int{0, 0, 20, 50, 100, 200},
		storms:     8,
		founders:   func(s *sim) (int, int) { return 3 + 2*s.rnd.IntN(2), s.rnd.IntN(3) },
		newMachine: func(*simNode) machine { return &chain{kept: &chain{}} },
		events:     []simEvent{{"propose", 1500, propose}},
		answered: func(s *sim, e entry) {
			answered = append(answered, binary.BigEndian.Uint64(e.Data))
		},
		finish: func(s *sim) {
			count := map[uint64]int{}
			for _, id := range s.pick(leading).machine.(*chain).ids {
				if count[id]++; count[id] > 1 {
					s.fail("proposal %d was applied twice", id)
				}
			}
			for _, id := range answered {
				if count[id] != 1 {
					s.fail("proposal %d was answered and is lost", id)
				}
			}
		},
	}
}

func (p *simPacket) describe() string {
	names := []string{"", "question", "yes", "vote request", "vote", "no", "append", "ack", "snapshot", "stand"}
	return fmt.Sprintf("%s of %s to %s, term %d, prev %v, %d entries, commit %d, match %d, hint %v, no %v",
		names[p.Kind], p.From.ID, p.To.ID, p.Term, p.Prev, len(p.Entries), p.Commit, p.Match, p.Hint, p.Reject)
}

// TestSimulation runs every seed twice: the same seed must give the same
// history to the letter, or a failure could not be repeated.
func TestSimulation(t *testing.T) {
	seeds := []uint64{*simSeed}
	if *simSeed == 0 {
		seeds = nil
		for i := range *simSeeds {
			seeds = append(seeds, uint64(i+1))
		}
	}
	for _, seed := range seeds {
		s := newSim(seed, chainPlan())
		if err := s.run(); err != nil {
			tail := strings.Join(s.lines[max(0, len(s.lines)-simTail):], "\n")
			t.Fatalf("%s\nseed %d: %v\nrepeat: go test -run TestSimulation -sim.seed=%d", tail, seed, err, seed)
		}
		again := newSim(seed, chainPlan())
		if again.run(); again.hash != s.hash {
			t.Fatalf("seed %d: two runs differ; repeat: go test -run TestSimulation -sim.seed=%d", seed, seed)
		}
	}
}

// newTestRaft returns a server among voters a1, b1 and so on, whose log holds
// one entry for each of terms, the first of them the list of voters.
func newTestRaft(self server, voters []server, terms ...uint64) *raft {
	disk := saved{State: hardState{Term: terms[len(terms)-1]}, Last: uint64(len(terms)), Voters: []voterSet{{}, {1, voters}}}
	for i, term := range terms {
		if i == 0 || term != terms[i-1] {
			disk.Terms = append(disk.Terms, position{uint64(i + 1), term})
		}
	}
	cfg := simConfig
	cfg.self = self
	return newRaft(cfg, disk, rand.New(rand.NewPCG(1, 1)))
}

var (
	serverA, serverB, serverC = server{"a", "a1"}, server{"b", "b1"}, server{"c", "c1"}
	threeServers              = []server{serverA, serverB, serverC}
)

// settle writes and sends until nothing is left to do, and returns what was sent.
func settle(r *raft) (sent []message) {
	for rd, ok := r.ready(); ok; rd, ok = r.ready() {
		sent = append(sent, rd.Messages...)
		if rd.writes() {
			r.persisted(rd)
		}
	}
	return sent
}

// elect makes r the leader, with the vote of b1.
func elect(t *testing.T, r *raft) {
	t.Helper()
	for range simConfig.electionTicks + simConfig.heartbeatTicks {
		r.tick()
	}
	term := r.state.Term + 1
	for _, kind := range []messageKind{msgPreVoteYes, msgVoteYes} {
		settle(r)
		if err := r.step(message{Kind: kind, From: serverB, To: r.cfg.self, Term: term}); err != nil {
			t.Fatal(err)
		}
	}
	if !r.status().Leading {
		t.Fatalf("does not lead: %+v", r.status())
	}
}

// The first by name waits shortest: that is the bully rule.
func TestRaft_Rank(t *testing.T) {
	var waits []int
	for _, s := range append(threeServers, server{"d", "d1"}) {
		waits = append(waits, newTestRaft(s, threeServers, 1).timeout)
	}
	if diff := cmp.Diff([]int{12, 15, 18, 21}, waits); diff != "" {
		t.Errorf("waits of three voters and a learner (-want +got):\n%s", diff)
	}
	if got := newTestRaft(serverA, threeServers[:1], 1).timeout; got != 1 {
		t.Errorf("the only voter waits %d ticks, want 1", got)
	}
}

// A server that votes alone leads however long its disk takes for a write: its
// round is not over before its own vote is durable.
func TestRaft_SlowDisk(t *testing.T) {
	r := newTestRaft(serverA, threeServers[:1], 1)
	r.tick()
	for write := range 3 {
		rd, _ := r.ready()
		if !rd.writes() {
			t.Fatalf("write %d: nothing to do: %+v", write, rd)
		}
		for range 8 * simConfig.electionTicks {
			r.stuck = true
			r.tick()
			if rd, ok := r.ready(); ok && rd.writes() {
				t.Fatalf("a second write at once: %+v", rd)
			}
		}
		r.persisted(rd)
		if r.status().Leading {
			if term := r.state.Term; term != 2 {
				t.Errorf("leads in term %d, want 2", term)
			}
			return
		}
	}
	t.Fatalf("does not lead: %+v", r.status())
}

// Who has left is taken in again when it says so after its removal, and not for
// what it said before.
func TestRaft_Leave(t *testing.T) {
	r := newTestRaft(serverA, threeServers, 1)
	elect(t, r)
	r.setLearners(threeServers)
	reply := func(from server, match uint64, leaving bool) {
		t.Helper()
		settle(r)
		if err := r.step(message{Kind: msgAppendReply, From: from, To: serverA, Term: 2, Match: match, Leaving: leaving}); err != nil {
			t.Fatal(err)
		}
	}
	reply(serverB, 2, false)
	reply(serverC, 2, false)
	removal, err := r.removeVoter(serverC.ID)
	if err != nil {
		t.Fatal(err)
	}
	reply(serverB, removal, false)
	for _, c := range []struct {
		match   uint64
		leaving bool
		last    uint64
	}{{2, false, removal}, {removal, true, removal}, {2, false, removal}, {removal, false, removal + 1}} {
		if reply(serverC, c.match, c.leaving); r.log.last != c.last {
			t.Errorf("an answer with entry %d, leaving %t: the log ends at %d, want %d", c.match, c.leaving, r.log.last, c.last)
		}
	}
}

// Who is about to stop hands over to a server that stays, and is not made the
// leader by another one that stops, or the two would hand over to each other.
func TestRaft_HandOverWhileOthersStop(t *testing.T) {
	r := newTestRaft(serverA, threeServers, 1)
	elect(t, r)
	reply := func(from server, leaving bool) {
		t.Helper()
		settle(r)
		if err := r.step(message{Kind: msgAppendReply, From: from, To: serverA, Term: 2, Match: 2, Leaving: leaving}); err != nil {
			t.Fatal(err)
		}
	}
	reply(serverB, true)
	reply(serverC, false)
	if err := r.transfer(); err != nil || r.transferee != serverC {
		t.Errorf("the heir is %v, %v, want %v: %v is about to stop", r.transferee, err, serverC, serverB)
	}
	reply(serverC, true)
	if err := r.transfer(); !errors.Is(err, errBusy) {
		t.Errorf("handing over to servers that are about to stop: %v, want %v", err, errBusy)
	}
	heir := newTestRaft(serverB, threeServers, 1)
	heir.leaving = true
	for _, kind := range []messageKind{msgAppend, msgTimeoutNow} {
		if err := heir.step(message{Kind: kind, From: serverA, To: serverB, Term: 2, Prev: position{1, 1}}); err != nil {
			t.Fatal(err)
		}
	}
	if heir.role != roleFollower || heir.timeout < newTestRaft(serverC, threeServers, 1).timeout {
		t.Errorf("a server that is about to stop has role %d, and stands after %d ticks without a leader", heir.role, heir.timeout)
	}
}

// check tests invariants 1 to 8 of raft.
func (r *raft) check() error {
	l := &r.log
	byIndex := func(a, b voterSet) int { return int(int64(a.Index) - int64(b.Index)) }
	byTerm := func(a, b position) int {
		if a.Term != b.Term {
			return int(int64(a.Term) - int64(b.Term))
		}
		return int(int64(a.Index) - int64(b.Index))
	}
	mayWait := func(m message) bool { return m.Kind == msgVote || m.Kind == msgVoteYes }
	switch {
	case r.stored.Term > r.state.Term || r.stored.Term == r.state.Term && r.stored.Vote != "" && r.stored.Vote != r.state.Vote:
		return fmt.Errorf("1: on disk %v, in memory %v", r.stored, r.state)
	case l.base.Index > r.commit || r.commit > l.last:
		return fmt.Errorf("2: base %d, commit %d, last %d", l.base.Index, r.commit, l.last)
	case !slices.IsSortedFunc(l.runs, byTerm) || l.end().Term > r.state.Term:
		return fmt.Errorf("3: terms %v, own %d", l.runs, r.state.Term)
	case l.durable+uint64(len(l.tail)) != l.last || len(l.tail) > 0 && l.tail[0].Index != l.durable+1:
		return fmt.Errorf("4: durable %d, %d in memory, last %d", l.durable, len(l.tail), l.last)
	case !slices.IsSortedFunc(l.voters, byIndex) || l.voters[0].Index > r.commit:
		return fmt.Errorf("5: voters %v, commit %d", l.voters, r.commit)
	case len(r.held) > 0 && (r.stored == r.state || !slices.ContainsFunc(r.held, mayWait)):
		return fmt.Errorf("6: %d messages wait for the disk", len(r.held))
	case r.role == roleLeader && r.stored != hardState{r.state.Term, r.cfg.self.ID}:
		return fmt.Errorf("7: leads in term %d, on disk %v", r.state.Term, r.stored)
	}
	return r.checkLeader()
}

func (r *raft) checkLeader() error {
	if r.role != roleLeader {
		return nil
	}
	for _, p := range r.peers {
		if p.match >= p.next || p.next > r.log.last+1 {
			return fmt.Errorf("8: %s: match %d, next %d, last %d", p.Name, p.match, p.next, r.log.last)
		}
	}
	own := 0
	for _, v := range r.log.voters {
		if v.Index >= r.first && v.Index > r.commit {
			own++
		}
	}
	if own > 1 || own == 1 && r.commit < r.first {
		return fmt.Errorf("8: voter changes %v, first %d, commit %d", r.log.voters, r.first, r.commit)
	}
	return nil
}

// A slowLink is a leader and a follower. What is large goes from one to the other
// on a link that carries one message at a time, however long that takes.
type slowLink struct {
	t            *testing.T
	leader, peer *raft
	log          []entry // of the leader
	snap         uint64  // where a snapshot ends that is taken now
	transit      int     // ticks that a large message takes
	install      int     // ticks that the follower writes a snapshot
	queue        []message
	due, done    int // ticks until the first of queue arrives, until the snapshot is installed
	write        *ready
	sent         map[messageKind]int // large messages
}

func newSlowLink(t *testing.T) *slowLink {
	two := []server{serverA, serverB}
	l := &slowLink{t: t, leader: newTestRaft(serverA, two, 1), peer: newTestRaft(serverB, two, 1), sent: map[messageKind]int{}}
	l.log = []entry{{Index: 1, Term: 1, Kind: entryVoters, Data: encodeVoters(two)}}
	for range simConfig.electionTicks + simConfig.heartbeatTicks {
		l.leader.tick()
	}
	for !l.leader.status().Leading {
		l.round()
	}
	return l
}

// round is a tick in which whatever is small arrives at once.
func (l *slowLink) round() {
	l.leader.tick()
	l.peer.tick()
	l.carry()
	for n := 0; n < 4; n++ {
		l.drive(l.leader, l.peer)
		l.drive(l.peer, l.leader)
	}
}

func (l *slowLink) carry() {
	if l.done--; l.write != nil && l.done <= 0 {
		l.peer.persisted(*l.write)
		l.write = nil
	}
	if len(l.queue) == 0 {
		return
	}
	if l.due--; l.due > 0 {
		return
	}
	m := l.queue[0]
	l.queue, l.due = l.queue[1:], l.transit
	l.step(l.peer, m)
	l.leader.delivered(m.To.ID, m.Number, max(m.Prev.Index, m.Prev.Index+uint64(len(m.Entries))))
}

func (l *slowLink) step(r *raft, m message) {
	if err := r.step(m); err != nil {
		l.t.Fatal(err)
	}
}

func (l *slowLink) drive(from, to *raft) {
	for rd, ok := from.ready(); ok; rd, ok = from.ready() {
		for _, m := range rd.Messages {
			l.send(to, m)
		}
		if from == l.leader {
			l.log = append(l.log, rd.Entries...)
		}
		if rd.Snapshot != nil {
			l.write, l.done = &rd, l.install
		} else if rd.writes() {
			from.persisted(rd)
		}
	}
}

func (l *slowLink) send(to *raft, m message) {
	if m.isBulk() {
		if len(l.queue) == 0 {
			l.due = l.transit
		}
		l.sent[m.Kind]++
		if m.Kind == msgAppend && len(m.Entries) == 0 {
			m.Entries = firstEntries(l.log[m.Prev.Index:m.Last])
		}
		if m.Kind == msgSnapshot {
			m.Prev, m.Voters = position{l.snap, l.leader.log.term(l.snap)}, l.leader.voters()
		}
		l.queue = append(l.queue, m)
		return
	}
	l.step(to, m)
}

// until lets time pass until the follower has all of the log.
func (l *slowLink) until(what string, limit int, ok func() bool) {
	l.t.Helper()
	for n := 0; !ok(); n++ {
		if n == limit {
			l.t.Fatalf("not %s after %d ticks; sent: %v, leader %+v %+v, follower %+v", what, limit, l.sent, l.leader.status(), l.leader.peers, l.peer.status())
		}
		l.round()
	}
}

// An append that takes longer than an election timeout to arrive is not sent
// again meanwhile.
func TestRaft_SlowLink(t *testing.T) {
	t.Parallel()
	const appends = 30
	l := newSlowLink(t)
	l.transit = 4 * simConfig.electionTicks
	l.until("committed", 100, func() bool { return l.leader.commit == l.leader.log.last })
	before := l.sent[msgAppend]
	for range appends {
		l.until("ready for more", 1000, func() bool {
			_, err := l.leader.propose(make([]byte, appendBytesMax))
			return err == nil
		})
	}
	l.until("committed", appends*(l.transit+4), func() bool { return l.leader.commit == l.leader.log.last })
	if got := l.sent[msgAppend] - before; got != appends {
		t.Errorf("%d appends were sent, %d were of use", got, appends)
	}
}

// A snapshot that takes long to be sent or to be installed is not sent again
// meanwhile; the follower then goes on with the entries behind it.
func TestRaft_SlowSnapshot(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ transit, install int }{"Link": {10 * simConfig.snapshotTicks, 0}, "Disk": {0, 10 * simConfig.snapshotTicks}} {
		t.Run(name, func(t *testing.T) {
			l := newSlowLink(t)
			l.until("committed", 100, func() bool { return l.leader.commit == l.leader.log.last })
			for range 10 {
				if _, err := l.leader.propose(nil); err != nil {
					t.Fatal(err)
				}
				l.round()
			}
			l.snap = l.leader.commit
			l.leader.log.compact(l.snap)
			two := []server{serverA, serverB}
			l.peer, l.transit, l.install = newTestRaft(serverB, two, 1), c.transit, c.install // its disk was set back
			l.peer.log.voters = []voterSet{{Voters: two}}
			l.leader.become(roleFollower, server{})
			for !l.leader.status().Leading {
				l.round()
			}
			l.until("caught up", 50*simConfig.snapshotTicks, func() bool { return l.leader.commit == l.leader.log.last })
			if l.sent[msgSnapshot] != 1 {
				t.Errorf("%d snapshots were sent, want 1", l.sent[msgSnapshot])
			}
		})
	}
}

// The log is kept for a peer that is dead only until a snapshot would be cheaper, even
// if it took an append and died before it answered.
func TestRaft_DeadPeerKeepsNoLog(t *testing.T) {
	r := newTestRaft(serverA, threeServers, 1, 2)
	elect(t, r)
	rd, _ := r.ready()
	for _, m := range rd.Messages {
		if m.isBulk() {
			r.delivered(m.To.ID, m.Number, m.Last)
		}
	}
	r.persisted(rd)
	for range simConfig.snapshotTicks + 1 {
		if err := r.step(message{Kind: msgAppendReply, From: serverC, To: serverA, Term: 3, Match: r.log.last, Number: r.sent}); err != nil {
			t.Fatal(err)
		}
		r.tick()
		settle(r)
	}
	if p := r.peer(serverB.ID); r.role != roleLeader || p.arrived == 0 {
		t.Fatalf("role %v, and of the dead peer %+v", r.role, p)
	}
	if got := r.needed(); got != r.log.last+1 {
		t.Errorf("the log is kept from entry %d on, want %d", got, r.log.last+1)
	}
}

// A leader does not commit an entry of an earlier term because a majority has
// it, only together with one of its own (thesis, figure 3.7).
func TestRaft_CommitOwnTerm(t *testing.T) {
	r := newTestRaft(serverA, threeServers, 1, 2)
	elect(t, r)
	settle(r)
	for _, want := range []struct{ match, commit uint64 }{{2, 0}, {3, 3}} {
		m := message{Kind: msgAppendReply, From: serverB, To: serverA, Term: 3, Match: want.match}
		if err := r.step(m); err != nil {
			t.Fatal(err)
		}
		if got := r.status().Commit; got != want.commit {
			t.Errorf("with a majority up to %d of terms 1, 2, 3: commit is %d, want %d", want.match, got, want.commit)
		}
	}
}

// What the value refuses, and what a role has no use for, changes nothing.
func TestRaft_Refused(t *testing.T) {
	one := entry{Index: 3, Term: 3}
	voters := func(data string) []entry { return []entry{{Index: 3, Term: 3, Kind: entryVoters, Data: []byte(data)}} }
	for _, c := range []struct {
		name string
		m    message
		want error
	}{
		{"OtherServer", message{Kind: msgAppend, To: server{"a", "a2"}}, errMisdirected},
		{"UnknownKind", message{Kind: msgTimeoutNow + 1}, errMalformed},
		{"Gap", message{Kind: msgAppend, Prev: position{1, 1}, Entries: []entry{one}}, errMalformed},
		{"TermAhead", message{Kind: msgAppend, Prev: position{2, 2}, Entries: []entry{{Index: 3, Term: 4}}}, errMalformed},
		{"TermFalls", message{Kind: msgAppend, Prev: position{2, 3}, Entries: []entry{{Index: 3, Term: 2}}}, errMalformed},
		{"VotersNotJSON", message{Kind: msgAppend, Prev: position{2, 2}, Entries: voters(`[`)}, errMalformed},
		{"NoVoters", message{Kind: msgAppend, Prev: position{2, 2}, Entries: voters(`[]`)}, errMalformed},
		{"VotersUnordered", message{Kind: msgAppend, Prev: position{2, 2}, Entries: voters(`[{"Name":"b","ID":"1"},{"Name":"a","ID":"2"}]`)}, errMalformed},
		{"SnapshotWithoutVoters", message{Kind: msgSnapshot, Prev: position{9, 2}}, errMalformed},
		{"SecondLeader", message{Kind: msgAppend}, errSecondLeader},
		{"SecondLeaderSnapshot", message{Kind: msgSnapshot, Voters: threeServers}, errSecondLeader},
		{"StandWhileLeading", message{Kind: msgTimeoutNow}, nil},
		{"LateVote", message{Kind: msgVoteYes}, nil},
		{"LateNo", message{Kind: msgVoteNo}, nil},
		{"AckOfStranger", message{Kind: msgAppendReply, From: server{"x", "x1"}, Match: 3}, nil},
		{"AckOfFuture", message{Kind: msgAppendReply, Match: 99}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newTestRaft(serverA, threeServers, 1, 2)
			elect(t, r)
			settle(r)
			before := r.status()
			m := c.m
			m.Term = 3
			if m.From == (server{}) {
				m.From = serverC
			}
			if m.To == (server{}) {
				m.To = serverA
			}
			if err := r.step(m); !errors.Is(err, c.want) {
				t.Errorf("step: %v, want %v", err, c.want)
			}
			if diff := cmp.Diff(before, r.status(), cmp.AllowUnexported(raftStatus{})); diff != "" {
				t.Errorf("the message changed (-before +after):\n%s", diff)
			}
			if sent := settle(r); len(sent) > 0 {
				t.Errorf("it was answered: %+v", sent)
			}
		})
	}
}

// The memory of a raft does not grow with its log.
func TestRaft_Memory(t *testing.T) {
	r := newTestRaft(serverA, threeServers[:1], 1)
	r.tick()
	settle(r)
	for range 100_000 {
		if _, err := r.propose(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		settle(r)
	}
	if len(r.log.runs) != 2 || len(r.log.tail) != 0 || r.log.tailBytes != 0 || r.commit != 100_002 {
		t.Errorf("after 100,000 entries: %d runs, %d entries of %d bytes, commit %d", len(r.log.runs), len(r.log.tail), r.log.tailBytes, r.commit)
	}
}

// A leader whose disk or followers do not keep up says so.
func TestRaft_Busy(t *testing.T) {
	r := newTestRaft(serverA, threeServers, 1)
	if _, err := r.propose(nil); !errors.Is(err, errNotLeader) {
		t.Errorf("follower: %v, want %v", err, errNotLeader)
	}
	elect(t, r)
	if _, err := r.propose(make([]byte, backlogBytesMax)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.propose(nil); !errors.Is(err, errBusy) {
		t.Errorf("bytes not on disk: %v, want %v", err, errBusy)
	}
	settle(r)
	if _, err := r.propose(make([][]byte, backlogEntriesMax)...); err != nil {
		t.Errorf("on disk: %v", err)
	}
	if _, err := r.propose(nil); !errors.Is(err, errBusy) {
		t.Errorf("entries not committed: %v, want %v", err, errBusy)
	}
}

// An append carries at most so many entries and bytes, but always one.
func TestRaft_AppendLimits(t *testing.T) {
	big, small := make([]byte, appendBytesMax+1), make([]byte, 1)
	for _, c := range []struct {
		name string
		data [][]byte
		want int
	}{
		{"OneLarge", [][]byte{big, small}, 1},
		{"LargeLater", [][]byte{small, small, big}, 2},
		{"Many", make([][]byte, 2*appendEntriesMax), appendEntriesMax},
	} {
		var list []entry
		for _, d := range c.data {
			list = append(list, entry{Data: d})
		}
		if got := len(firstEntries(list)); got != c.want {
			t.Errorf("%s: %d entries, want %d", c.name, got, c.want)
		}
	}
}

// raftLog.back finds the place to which a leader goes back in one step.
func TestRaftLog_Back(t *testing.T) {
	l := raftLog{base: position{10, 2}, last: 30, durable: 30, runs: []position{{11, 2}, {15, 4}, {20, 7}}}
	for _, c := range []struct{ p, want position }{
		{position{25, 7}, position{25, 7}},
		{position{99, 9}, position{30, 7}},
		{position{25, 6}, position{19, 4}},
		{position{18, 3}, position{14, 2}},
		{position{12, 2}, position{12, 2}},
		{position{10, 2}, position{10, 2}},
		{position{12, 1}, position{9, 0}},
		{position{5, 1}, position{5, 0}},
	} {
		if got := l.lastCommon(c.p); got != c.want {
			t.Errorf("back(%v) = %v, want %v", c.p, got, c.want)
		}
	}
}

// raftLog.compact keeps every term that is still in the log.
func TestRaftLog_Compact(t *testing.T) {
	for index := uint64(1); index <= 9; index++ {
		l := raftLog{last: 9, durable: 9, runs: []position{{1, 1}, {4, 2}, {5, 3}, {9, 6}}}
		var want, got []uint64
		for i := uint64(0); i <= 10; i++ {
			if i < index {
				want = append(want, 0)
			} else {
				want = append(want, l.term(i))
			}
		}
		l.compact(index)
		for i := uint64(0); i <= 10; i++ {
			got = append(got, l.term(i))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("terms of entries 0 to 10 after compact(%d) (-want +got):\n%s", index, diff)
		}
	}
}

// A cluster with a majority of live voters finds a leader even if the only log
// with which they can agree is that of a server which is no voter by it. Both
// were found by the simulation, within 1,500 and 10,000 seeds.
func TestSimulation_OnlyLog(t *testing.T) {
	list := func(names string) (voters []server) {
		for _, name := range names {
			voters = append(voters, server{string(name), string(name) + "1"})
		}
		return voters
	}
	noop := func(index, term uint64) entry { return entry{Index: index, Term: term, Kind: entryNoop} }
	voters := func(index, term uint64, names string) entry {
		return entry{Index: index, Term: term, Kind: entryVoters, Data: encodeVoters(list(names))}
	}
	for _, c := range []struct {
		name     string
		founders string
		logs     map[string][]entry // behind the first entry
		dead     int
	}{
		// a and d miss the last entry of c, so c must lead, which that entry removes.
		{"Removed", "abcd", map[string][]entry{"a": {noop(2, 2)}, "d": {noop(2, 2)}, "c": {noop(2, 2), voters(3, 2, "abd")}}, 1},
		// b needs a, whose log is longer; a needs d, whose log is newer.
		{"Learner", "abc", map[string][]entry{"a": {noop(2, 2), voters(3, 2, "abcd")}, "b": {noop(2, 2)}, "d": {noop(2, 3)}}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(1, chainPlan())
			s.addServers(4)
			state, first := firstEntry(list(c.founders))
			for _, n := range s.nodes {
				if log, ok := c.logs[n.self.Name]; ok {
					state.Term = max(state.Term, log[len(log)-1].Term)
					s.persist(n, ready{State: &state, Entries: append([]entry{first}, log...)})
				}
			}
			s.wipe(s.nodes[c.dead])
			if s.heal(); s.err != nil {
				t.Fatalf("%s\n%v", strings.Join(s.lines, "\n"), s.err)
			}
		})
	}
}

// TestRaft_Source keeps the protocol a value: no clock, goroutine, lock,
// socket or logger can be had without one of these.
func TestRaft_Source(t *testing.T) {
	fset := gotoken.NewFileSet()
	file, err := parser.ParseFile(fset, "cluster.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	methods := 0
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && isValueMethod(f) {
			methods++
			ast.Inspect(f, func(n ast.Node) bool {
				if what := impure(n); what != "" {
					t.Errorf("%s: %s uses %s", fset.Position(n.Pos()), f.Name.Name, what)
				}
				return true
			})
		}
	}
	if methods < 30 {
		t.Errorf("found %d methods of *raft and *raftLog, want the protocol", methods)
	}
}

func isValueMethod(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return false
	}
	star, ok := f.Recv.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	name, ok := star.X.(*ast.Ident)
	return ok && (name.Name == "raft" || name.Name == "raftLog")
}

// impure names what a protocol that can be replayed has no use for. A range
// over a map is not visible to the parser; the second run of each seed finds it.
func impure(n ast.Node) string {
	switch n := n.(type) {
	case *ast.GoStmt:
		return "go"
	case *ast.SelectStmt, *ast.SendStmt, *ast.ChanType:
		return "a channel"
	case *ast.UnaryExpr:
		if n.Op == gotoken.ARROW {
			return "a channel"
		}
	case *ast.SelectorExpr:
		if x, ok := n.X.(*ast.Ident); ok && slices.Contains([]string{"time", "os", "net", "http", "sync", "slog", "rand"}, x.Name) && n.Sel.Name != "Rand" {
			return x.Name
		}
	}
	return ""
}

// TestSimulation_Planted proves that the simulations see: each file in
// testdata/planted is a mistake that somebody could make, and must be found
// within the number of seeds that it states: one that the scheduling of goroutines
// leaves with a chance of less than 1 in 10,000 to be missed. All are built into one copy of this
// package, in which an environment variable says which of them is made.
func TestSimulation_Planted(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a copy of the package")
	}
	files, err := filepath.Glob("testdata/planted/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no planted mistakes: %v", err)
	}
	var list []mistake
	numbers := map[string]bool{}
	for _, file := range files {
		m := readMistake(t, file)
		number, _, _ := strings.Cut(m.name, "-")
		if numbers[number] {
			t.Errorf("%s: another mistake has this number", file)
		}
		numbers[number] = true
		list = append(list, m)
	}
	dir := t.TempDir()
	plant(t, dir, list)
	build := exec.Command("go", "test", "-c", "-o=planted.test", "-vet=off", "-ldflags=-s -w")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, m := range list {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for seed := 1; seed <= m.seeds; seed++ {
				cmd := exec.Command(filepath.Join(dir, "planted.test"), "-test.run=^"+m.test+"$", "-test.timeout=2m", fmt.Sprint(seedFlags[m.test], "=", seed))
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), plantedEnv+"="+m.name)
				out, err := cmd.CombinedOutput()
				if why := failure.FindAllSubmatch(out, -1); err != nil && why != nil {
					t.Logf("seed %d: %s", seed, why[len(why)-1][1])
					return
				}
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			t.Fatalf("not found by %s within %d seeds", m.test, m.seeds)
		})
	}
}

const plantedEnv = "BELFRY_PLANTED"

var (
	// seedFlags are how a test that may find a planted mistake is told the one seed to take.
	seedFlags = map[string]string{"TestSimulation": "-sim.seed", "TestSimulation_Rules": "-rules.seed", "TestSimulation_Servers": "-servers.seed"}

	// failure is why a test failed: the last such line of what it printed.
	failure = regexp.MustCompile(`(?m)^ +(?:seed \d+|\w+_test\.go:\d+): (.*)$`)
)

// A mistake is what a file in testdata/planted says: a sentence, a line
// "test: name" unless TestSimulation finds it, a line "seeds: n", then any
// number of sections, whose old text is within one function
//
//	--- name of a Go file
//	old text
//	+++
//	new text
type mistake struct {
	name    string
	test    string
	seeds   int
	changes []textChange
}

type textChange struct{ file, old, new string }

func readMistake(t *testing.T, file string) mistake {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := mistake{name: strings.TrimSuffix(filepath.Base(file), ".txt"), test: "TestSimulation"}
	head, rest, _ := strings.Cut(strings.TrimSuffix(string(text), "\n"), "\n--- ")
	head, number, _ := strings.Cut(head, "\nseeds: ")
	if m.seeds, err = strconv.Atoi(number); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if _, test, ok := strings.Cut(head, "\ntest: "); ok {
		m.test = test
	}
	for section := range strings.SplitSeq(rest, "\n--- ") {
		name, change, _ := strings.Cut(section, "\n")
		old, new, ok := strings.Cut(change, "\n+++\n")
		if !ok {
			t.Fatalf("%s: a section without +++", file)
		}
		m.changes = append(m.changes, textChange{name, old, new})
	}
	return m
}

// plant copies the package to dir. Each function in which a mistake changes
// something begins with its body as the mistake has it, for when that is made.
func plant(t *testing.T, dir string, list []mistake) {
	for _, pattern := range []string{"*_test.go", "go.*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			copyFile(t, name, filepath.Join(dir, name))
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "web"), os.DirFS("web")); err != nil { // it is embedded
		t.Fatal(err)
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, m := range list {
		left += len(m.changes)
	}
	for _, name := range slices.DeleteFunc(sources, func(name string) bool { return strings.HasSuffix(name, "_test.go") }) {
		source, changes := plantFile(t, name, list)
		left -= changes
		if err := os.WriteFile(filepath.Join(dir, name), source, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if left != 0 {
		t.Fatalf("the old texts of %d changes are in no function, or in more than one", left)
	}
	which := fmt.Sprintf("package main\n\nimport \"os\"\n\nvar planted = os.Getenv(%q)\n", plantedEnv)
	if err := os.WriteFile(filepath.Join(dir, "planted.go"), []byte(which), 0o600); err != nil {
		t.Fatal(err)
	}
}

// plantFile returns a source file with the mistakes that are in it, and how many
// changes that are.
func plantFile(t *testing.T, name string, list []mistake) (planted []byte, changes int) {
	source, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	fset := gotoken.NewFileSet()
	tree, err := parser.ParseFile(fset, name, source, 0)
	if err != nil {
		t.Fatal(err)
	}
	text, done := string(source), 0
	var out strings.Builder
	for _, d := range tree.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		begin, end := fset.Position(f.Body.Lbrace).Offset+1, fset.Position(f.Body.Rbrace).Offset
		out.WriteString(text[done:begin])
		done = begin
		for _, m := range list {
			body := text[begin:end]
			for _, c := range m.changes {
				if c.file == name && strings.Contains(body, c.old) && strings.Count(text, c.old) == 1 {
					body = strings.Replace(body, c.old, c.new, 1)
					changes++
				}
			}
			if body == text[begin:end] {
				continue
			}
			if f.Type.Results == nil {
				body += "\nreturn\n"
			}
			fmt.Fprintf(&out, "\nif planted == %q {%s}\n", m.name, body)
		}
	}
	out.WriteString(text[done:])
	return []byte(out.String()), changes
}

func copyFile(t *testing.T, from, to string) {
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ---- The driver and the plane: real servers on loopback

// Servers and agents with real disks and connections, in this process

const (
	testBeat = 100 * time.Millisecond
	testTick = 2 * tickTime // an election timeout of a second: the race detector is slow, and so are busy machines
)

var testKey = bytes.Repeat([]byte{7}, 32)

// peerNode is a server or an agent. It runs from start to stop or kill, and
// can be started again.
type peerNode struct {
	t   testing.TB
	cfg planeConfig
	log *slog.Logger

	plane   *plane
	api     *api     // which only forwards
	store   *store   // nil: an agent
	cluster *cluster // nil: an agent
	dir     *agentDir
	cancel  context.CancelFunc
	ended   sync.WaitGroup
	errs    [2]error // of plane and cluster, after ended
	kept    logRetention
	format  byte // of commands, the latest that it applies; 0: that of this version

	mu       sync.Mutex
	orders   []order  // guarded by mu: what it was given
	reported []result // guarded by mu: what it took as leader
	refusal  error    // guarded by mu: what it answers to dispatches
}

// newPeer makes a node of a test; join are nodes that run.
func newPeer(t testing.TB, name string, expect int, join ...*peerNode) *peerNode {
	t.Helper()
	n := &peerNode{t: t, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("on", name)}
	n.cfg = planeConfig{record: record{Name: name, Server: true, Expect: expect}, Bind: "127.0.0.1:0", Key: testKey, Dir: t.TempDir(), JoinPause: testBeat, BeatTime: testBeat}
	n.join(join...)
	t.Cleanup(n.stop)
	return n
}

// join adds the addresses of nodes that run to those that this one tries.
func (n *peerNode) join(nodes ...*peerNode) {
	for _, other := range nodes {
		n.cfg.Join = append(n.cfg.Join, other.plane.own().Addr)
	}
}

func startPeer(t testing.TB, name string, expect int, join ...*peerNode) *peerNode {
	t.Helper()
	n := newPeer(t, name, expect, join...)
	n.start()
	return n
}

func startWorker(t testing.TB, name string, join ...*peerNode) *peerNode {
	t.Helper()
	n := newPeer(t, name, 0, join...)
	n.cfg.Server = false
	n.start()
	return n
}

// start runs the node in its directory. Its address is a new one each time.
func (n *peerNode) start() {
	n.t.Helper()
	n.cfg.Incarnation = rand.Uint64() | 1
	var err error
	if n.cfg.Server {
		n.store, err = openStore(n.cfg.Dir)
		n.must(err)
		if n.kept != (logRetention{}) {
			n.store.kept = n.kept
		}
		if n.format != 0 {
			n.store.format = n.format
		}
		own, err := n.store.own()
		n.must(err)
		n.cfg.ID = own.ID
	} else {
		n.dir, err = openAgentDir(n.cfg.Dir)
		n.must(err)
		n.cfg.ID, n.cfg.Cluster, n.cfg.Agent = n.dir.ID, n.dir.Cluster, n.dir
	}
	n.plane, err = newPlane(n.cfg, peerWork{n: n}, n.log)
	n.must(err)
	n.plane.api, n.api = http.HandlerFunc(n.serveAPI), &api{plane: n.plane, log: n.log}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	if n.cfg.Server {
		n.cluster, err = newCluster(n.plane, n.store, testTick, peerWork{n: n})
		n.must(err)
		n.ended.Go(func() { n.errs[1] = n.cluster.run(ctx) })
	}
	n.ended.Go(func() { n.errs[0] = n.plane.run(ctx) })
}

func (n *peerNode) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("%s: %v", n.cfg.Name, err)
	}
}

// kill ends the node without a word to the others, as a crash does. The
// database is checked.
func (n *peerNode) kill() {
	n.t.Helper()
	if n.cancel == nil {
		return
	}
	n.cancel()
	n.ended.Wait()
	n.cancel = nil
	if err := errors.Join(n.errs[:]...); err != nil {
		n.t.Errorf("%s ended: %v", n.cfg.Name, err)
	}
	if n.dir != nil {
		n.must(n.dir.close())
		return
	}
	if err := n.store.check(); err != nil {
		n.t.Errorf("%s: %v", n.cfg.Name, err)
	}
	n.must(n.store.close())
}

// stop ends the node in good order, but for the hand-over.
func (n *peerNode) stop() {
	n.t.Helper()
	if n.cancel != nil {
		n.plane.leaving()
	}
	n.kill()
}

// idleLeader does nothing while it leads.
type idleLeader struct{}

func (idleLeader) lead(ctx context.Context, _ uint64) error { <-ctx.Done(); return nil }
func (idleLeader) noteApplied(...applied)                   {}
func (idleLeader) report(context.Context, []result) ([]int64, error) {
	return nil, nil
}

// peerWork is what a peerNode runs and records.
type peerWork struct {
	idleLeader
	n *peerNode
}

func (w peerWork) start(d dispatch) error               { return w.n.take(d) }
func (w peerWork) ask(q question) (answer, error)       { return w.n.answer(q) }
func (w peerWork) kill(kill) error                      { return errUnknownExecution }
func (w peerWork) counts() (running, undelivered int)   { return 0, 0 }
func (w peerWork) printed(ids []int64) map[int64][]byte { return w.n.printed(ids) }
func (w peerWork) output(ctx context.Context, execution int64, follow bool, from int64, out io.Writer) error {
	return w.n.output(ctx, execution, follow, from, out)
}
func (w peerWork) report(ctx context.Context, results []result) ([]int64, error) {
	return w.n.report(ctx, results)
}

func (n *peerNode) take(d dispatch) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d.Incarnation != n.cfg.Incarnation {
		return errOtherIncarnation
	}
	if n.refusal != nil {
		return n.refusal
	}
	n.orders = append(n.orders, d.Orders...)
	return nil
}

func (n *peerNode) answer(q question) (answer, error) {
	return answer{Incarnation: n.cfg.Incarnation, Running: q.Executions, Held: []result{{Execution: 7, Node: n.cfg.Name, Outcome: outcomeSuccess, Output: []byte("held by " + n.cfg.Name)}}}, nil
}

func (n *peerNode) output(ctx context.Context, execution int64, follow bool, from int64, w io.Writer) error {
	if execution != 7 {
		return errUnknownExecution
	}
	_, err := io.WriteString(w, "printed on "+n.cfg.Name)
	if follow && err == nil {
		<-ctx.Done()
		err = ctx.Err()
	}
	return err
}

func (n *peerNode) printed(executions []int64) map[int64][]byte {
	found := map[int64][]byte{}
	for _, id := range executions[:min(1, len(executions))] { // as if the others had not printed
		found[id] = []byte("on " + n.cfg.Name)
	}
	return found
}

func (n *peerNode) report(ctx context.Context, results []result) (ids []int64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range results {
		n.reported, ids = append(n.reported, r), append(ids, r.Execution)
	}
	return ids, nil
}

// serveAPI is a tiny API: it stores a job under the name that is posted.
func (n *peerNode) serveAPI(w http.ResponseWriter, r *http.Request) {
	f, ok := forwardedFrom(r.Context())
	if !n.plane.leading() && ok && !f.Final {
		if err := n.api.forward(w, r, f.Actor, f.Request); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
		return
	}
	name, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	res, err := n.cluster.propose(r.Context(), putCommand(string(name)))
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set(headerIndex, fmt.Sprint(res.Index))
	fmt.Fprintf(w, "%s asked %s %s, id %s", f.Actor, r.Method, r.URL.RequestURI(), f.Request)
}

func putCommand(name string) *command {
	return &command{Now: testStart, Request: "put " + name, Put: []jobPut{{
		Job: job{Name: name, Schedule: "0 0 0 1 1 *", Executor: "http", ExecutorConfig: map[string]string{"method": "GET", "url": "http://127.0.0.1/"}}, Next: never}}}
}

// leaderOf waits until one of nodes leads and all others follow it.
func leaderOf(t testing.TB, nodes ...*peerNode) *peerNode {
	t.Helper()
	var leader *peerNode
	eventually(t, "one leader that all follow", func() bool {
		leader = nil
		for _, n := range nodes {
			if n.cluster.leading() {
				leader = n
			}
		}
		return leader != nil && !slices.ContainsFunc(nodes, func(n *peerNode) bool { return n.cluster.status().Leader.ID != leader.cfg.ID })
	})
	return leader
}

// put stores a job through whichever of nodes leads.
func put(t testing.TB, name string, nodes ...*peerNode) applied {
	t.Helper()
	var res applied
	eventually(t, "stored job "+name, func() bool {
		var err error
		res, err = leaderOf(t, nodes...).cluster.propose(t.Context(), putCommand(name))
		return err == nil
	})
	return res
}

// same waits until all nodes have the same state.
func same(t testing.TB, nodes ...*peerNode) {
	t.Helper()
	var dumps []string
	eventually(t, "equal states", func() bool {
		dumps = nil
		for _, n := range nodes {
			dump, err := n.store.dump()
			n.must(err)
			dumps = append(dumps, dump)
		}
		return len(slices.Compact(slices.Clone(dumps))) == 1
	})
}

func voterNames(n *peerNode) string {
	var names []string
	st := n.cluster.status()
	for _, v := range st.Voters {
		names = append(names, v.Name)
	}
	if st.Index > st.Commit {
		return "not committed"
	}
	return strings.Join(names, " ")
}

// voters waits until the committed voters are those named.
func voters(t testing.TB, names string, nodes ...*peerNode) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, n.cfg.Name+" knows the voters "+names, func() bool { return voterNames(n) == names })
	}
}

// trio founds a cluster of three.
func trio(t testing.TB) []*peerNode {
	t.Helper()
	a := startPeer(t, "a", 3)
	nodes := []*peerNode{a, startPeer(t, "b", 3, a), startPeer(t, "c", 3, a)}
	voters(t, "a b c", nodes...)
	return nodes
}

func refusedBy(n *peerNode, reason string) int64 {
	return n.plane.refused[slices.Index(planeReasons, reason)].Load()
}

func hasTrouble(n *peerNode, text string) bool {
	return slices.ContainsFunc(slices.Concat(n.plane.health()), func(s string) bool { return strings.Contains(s, text) })
}

// A server alone makes a cluster at once; two more are taken in one after the
// other, with nothing but its address.
func TestCluster_Grow(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	put(t, "first", a)
	b, c := startPeer(t, "b", 0, a), startPeer(t, "c", 0, a)
	voters(t, "a b c", a, b, c)
	if l := leaderOf(t, a, b, c); l != a {
		t.Errorf("%s leads, want a: a leader that works stays", l.cfg.Name)
	}
	put(t, "second", a, b, c)
	same(t, a, b, c)
	for _, n := range []*peerNode{a, b, c} {
		if own, err := n.store.own(); err != nil || own.Cluster != a.plane.clusterID() || own.Cluster == "" {
			t.Errorf("%s belongs to cluster %q, %v; want that of a", n.cfg.Name, own.Cluster, err)
		}
		eventually(t, "three members", func() bool { return len(n.plane.members()) == 3 })
		if !reflect.DeepEqual(n.plane.members(), a.plane.members()) {
			t.Errorf("members on %s: %v, on a: %v", n.cfg.Name, n.plane.members(), a.plane.members())
		}
	}
}

// What was acknowledged survives the death of the leader, and of all servers at
// once; who comes back, at another address, catches up.
func TestCluster_KillAndRestart(t *testing.T) {
	t.Parallel()
	nodes := trio(t)
	put(t, "one", nodes...)
	leader := leaderOf(t, nodes...)
	leader.kill()
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n *peerNode) bool { return n == leader })
	put(t, "two", rest...)
	leader.start()
	put(t, "three", nodes...)
	same(t, nodes...)

	for _, n := range nodes {
		n.kill()
	}
	for _, n := range nodes { // the addresses are new, those in the files are stale: only --join is left
		n.cfg.Join = nil
	}
	nodes[0].start()
	nodes[1].join(nodes[0])
	nodes[2].join(nodes[0])
	nodes[1].start()
	nodes[2].start()
	put(t, "four", nodes...)
	same(t, nodes...)
	if _, err := nodes[2].store.job("one"); err != nil {
		t.Error(err)
	}
}

// Five servers work with three, and stop with two: the leader says so.
func TestCluster_Five(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 5)
	nodes := []*peerNode{a}
	for _, name := range []string{"b", "c", "d", "e"} {
		nodes = append(nodes, startPeer(t, name, 5, a))
	}
	voters(t, "a b c d e", nodes...)
	put(t, "one", nodes...)
	for range 2 {
		leader := leaderOf(t, nodes...)
		leader.kill()
		nodes = slices.DeleteFunc(nodes, func(n *peerNode) bool { return n == leader })
	}
	put(t, "two", nodes...)
	leader := leaderOf(t, nodes...)
	other := nodes[(slices.Index(nodes, leader)+1)%3]
	other.kill()
	eventually(t, "the leader steps down", func() bool { return !leader.cluster.leading() })
	if _, err := leader.cluster.propose(t.Context(), putCommand("three")); !errors.Is(err, errNotLeader) {
		t.Errorf("propose without a majority: %v, want %v", err, errNotLeader)
	}
	other.start()
	other.plane.learn(gossip{From: leader.plane.own()}) // it knows only stale addresses
	put(t, "four", nodes...)
	same(t, nodes...)
}

// A follower whose next entry is gone from the leader's log gets a snapshot; so
// does a new server. Its term, vote and id stay its own.
func TestCluster_Snapshot(t *testing.T) {
	t.Parallel()
	small := logRetention{entries: 10, bytes: 1 << 20, pinned: 16 << 20, slack: 5}
	var nodes []*peerNode
	for _, name := range []string{"a", "b", "c"} {
		n := newPeer(t, name, 3, nodes[:min(1, len(nodes))]...)
		n.kept = small
		n.start()
		nodes = append(nodes, n)
	}
	voters(t, "a b c", nodes...)
	leader := leaderOf(t, nodes...)
	behind := nodes[(slices.Index(nodes, leader)+1)%3]
	before := behind.cfg.ID
	behind.kill()
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n *peerNode) bool { return n == behind })
	for i := range 60 {
		put(t, fmt.Sprint("job-", i), rest...)
	}
	behind.cfg.Join = nil
	behind.join(leader)
	behind.start()
	fresh := newPeer(t, "d", 0, leader)
	fresh.kept = small
	fresh.start()
	nodes = append(nodes, fresh)
	voters(t, "a b c d", nodes...)
	same(t, nodes...)
	put(t, "last", nodes...)
	same(t, nodes...)
	for _, n := range []*peerNode{behind, fresh} {
		disk, err := n.store.saved()
		n.must(err)
		if disk.Base.Index < 20 {
			t.Errorf("the log of %s begins behind %v: it got no snapshot", n.cfg.Name, disk.Base)
		}
		if left, _ := filepath.Glob(filepath.Join(n.cfg.Dir, snapshotPattern)); len(left) > 0 {
			t.Errorf("left in the directory of %s: %v", n.cfg.Name, left)
		}
	}
	if behind.cfg.ID != before {
		t.Errorf("the snapshot changed the node's id from %s to %s", before, behind.cfg.ID)
	}
}

// A server catches up although more is written while its snapshot is on the way
// than the log keeps.
func TestCluster_SnapshotUnderLoad(t *testing.T) {
	t.Parallel()
	a := newPeer(t, "a", 1)
	a.kept = logRetention{entries: 10, bytes: 1 << 20, pinned: 16 << 20, slack: 5}
	a.start()
	var snapshots atomic.Int64
	next := a.plane.beats.Transport
	a.plane.beats = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == "/snapshot" {
			snapshots.Add(1)
			for taken := a.store.applied.Load(); a.store.applied.Load() < taken+100; {
				pause(t.Context(), testTick)
			}
		}
		return next.RoundTrip(r)
	})}
	for i := range 60 {
		put(t, fmt.Sprint("job-", i), a)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for i := range 20 {
		load.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				a.cluster.propose(ctx, putCommand(fmt.Sprintf("job-%d-%d", i, n)))
			}
		})
	}
	b := startPeer(t, "b", 0, a)
	voters(t, "a b", a, b)
	cancel()
	load.Wait()
	put(t, "last", a, b)
	same(t, a, b)
	if n := snapshots.Load(); n != 1 {
		t.Errorf("%d snapshots were sent, want 1", n)
	}
	eventually(t, "the log is as short as before", func() bool {
		put(t, "more", a, b)
		disk, err := a.store.saved()
		a.must(err)
		return disk.Last-disk.Base.Index < 30
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A snapshot that does not get on is given up, so that its receiver, which may be
// back elsewhere, is not kept waiting; one that takes long is not.
func TestCluster_SlowSnapshot(t *testing.T) {
	for name, answers := range map[string]bool{"Stuck": false, "Slow": true} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			if err := s.persist(nil, []entry{{Index: 1, Term: 1, Kind: entryVoters, Data: encodeVoters(threeServers)}}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.applyUpTo(1); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var requests atomic.Int64
				far := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					for n := 0; answers; n++ { // each part within its time, the whole not
						time.Sleep(chunkTime / 4)
						if _, err := io.ReadFull(r.Body, make([]byte, 20_000)); err != nil {
							io.WriteString(w, "{}")
							return
						}
					}
					<-ctx.Done()
				})}
				wires := make(wireListener)
				go far.Serve(wires)
				p := &plane{cfg: planeConfig{record: record{ID: "id-a"}}, known: map[string]*contact{"id-b": {record: record{Name: "b", ID: "id-b", Addr: "b:1"}}}}
				p.beats = &http.Client{Transport: transport{&http.Transport{DialTLSContext: wires.dial, IdleConnTimeout: time.Second}}}
				c := &cluster{plane: p, store: s, log: slog.New(slog.NewTextHandler(t.Output(), nil)), events: make(chan func() error), tickTime: testTick}
				c.view.Store(&raftStatus{})
				c.links = map[linkKey][]message{}
				c.send(ctx, []message{{Kind: msgSnapshot, To: server{"b", "id-b"}}})
				began := time.Now()
				<-c.events // says what became of it
				if n := requests.Load(); n != 1 {
					t.Errorf("%d snapshots were sent, want one", n)
				}
				if took := time.Since(began); answers == (took < 2*chunkTime) {
					t.Errorf("it took %v; want about %v if it does not get on, and more if it is only slow", took, chunkTime)
				}
				cancel()
				c.children.Wait()
				far.Close()
				p.beats.CloseIdleConnections()
			})
		})
	}
}

// A wireListener accepts connections that exist in memory only.
type wireListener chan net.Conn

func (l wireListener) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	l <- far
	return near, nil
}

func (l wireListener) Accept() (net.Conn, error) {
	conn, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (l wireListener) Close() error   { close(l); return nil }
func (l wireListener) Addr() net.Addr { return &net.TCPAddr{} }

// A new disk under the name of a dead server takes its place among the voters.
func TestCluster_ReplacedDisk(t *testing.T) {
	t.Parallel()
	nodes := trio(t)
	put(t, "one", nodes...)
	leader := leaderOf(t, nodes...)
	dead := nodes[(slices.Index(nodes, leader)+1)%3]
	old := dead.cfg.ID
	dead.kill()
	dead.cfg.Dir = t.TempDir()
	dead.cfg.Join = nil
	dead.join(leader)
	dead.start()
	for _, n := range nodes {
		eventually(t, n.cfg.Name+" counts the new disk as a voter", func() bool {
			v := n.cluster.status().Voters
			return voterNames(n) == "a b c" && slices.Contains(v, server{dead.cfg.Name, dead.cfg.ID})
		})
	}
	if old == dead.cfg.ID {
		t.Fatal("the new disk has the old id")
	}
	put(t, "two", nodes...)
	same(t, nodes...)
}

// The SQL function sleep lets what a server applies take its time, in nanoseconds, without using the processor.
func init() {
	sqlite.MustRegisterScalarFunction("sleep", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		time.Sleep(time.Duration(args[0].(int64)))
		return nil, nil
	})
}

// What a leader has to apply may take longer than an election timeout: that is
// no slow disk, and no reason to step down.
func TestCluster_SlowApply(t *testing.T) {
	nodes := trio(t)
	leader := leaderOf(t, nodes...)
	term := leader.cluster.status().Term
	put(t, "quick", nodes...)
	trigger := fmt.Sprintf("CREATE TRIGGER slow AFTER INSERT ON jobs WHEN NEW.name = 'slow' BEGIN SELECT sleep(%d); END", 3*leader.cluster.electionTime())
	leader.must(execFile(t.Context(), leader.store.path, trigger))
	began := time.Now()
	var slowly sync.WaitGroup
	slowly.Go(func() { leader.cluster.propose(t.Context(), putCommand("slow")) })
	for n := 0; time.Since(began) < leader.cluster.electionTime()/2; n++ { // these are written behind what is applied
		slowly.Go(func() { leader.cluster.propose(t.Context(), putCommand(fmt.Sprint("quick-", n))) })
		pause(t.Context(), leader.cluster.tickTime)
	}
	slowly.Wait()
	took := time.Since(began)
	if now := leaderOf(t, nodes...); now != leader || now.cluster.status().Term != term {
		t.Errorf("%s leads in term %d, want %s in term %d", now.cfg.Name, now.cluster.status().Term, leader.cfg.Name, term)
	} else if took < 3*leader.cluster.electionTime()/2 {
		t.Fatalf("applying took %v, less than this test needs", took)
	}
	leader.must(execFile(t.Context(), leader.store.path, "DROP TRIGGER slow"))
}

// A leader that is asked to hands over within moments; alone it cannot, and
// goes on.
func TestCluster_HandOver(t *testing.T) {
	t.Parallel()
	nodes := trio(t)
	leader := leaderOf(t, nodes...)
	eventually(t, "a hand-over", func() bool { return leader.cluster.transferLeadership(t.Context()) == nil })
	if next := leaderOf(t, nodes...); next == leader {
		t.Error("the leader still leads after it has handed over")
	}
	alone := startPeer(t, "z", 1)
	put(t, "one", alone)
	if err := alone.cluster.transferLeadership(t.Context()); !errors.Is(err, errBusy) {
		t.Errorf("handing over without another server: %v, want %v", err, errBusy)
	}
	put(t, "two", alone)
}

// A server that leaves is no voter any more when it says so, and it is taken in
// again when it comes back. One that lives cannot be removed, one that is dead can.
func TestCluster_Leave(t *testing.T) {
	t.Parallel()
	nodes := trio(t)
	leader := leaderOf(t, nodes...)
	follower, third := nodes[(slices.Index(nodes, leader)+1)%3], nodes[(slices.Index(nodes, leader)+2)%3]
	if _, err := follower.plane.removePeer(t.Context(), third.cfg.ID); !errors.Is(err, errAliveVoter) {
		t.Errorf("removing a live server: %v, want %v", err, errAliveVoter)
	}
	if _, err := follower.plane.removePeer(t.Context(), "nobody"); !errors.Is(err, errNoServer) {
		t.Errorf("removing nobody: %v, want %v", err, errNoServer)
	}
	leader.must(leader.plane.leave(t.Context()))
	leader.stop()
	rest := []*peerNode{follower, third}
	slices.SortFunc(rest, func(a, b *peerNode) int { return strings.Compare(a.cfg.Name, b.cfg.Name) })
	voters(t, rest[0].cfg.Name+" "+rest[1].cfg.Name, rest...)
	for _, m := range rest[0].plane.members() {
		if m.Name == leader.cfg.Name && m.Status != memberLeft {
			t.Errorf("%s has status %d, want %d: left", m.Name, m.Status, memberLeft)
		}
	}
	leader.cfg.Join = nil
	leader.join(rest...)
	leader.start()
	voters(t, "a b c", nodes...)

	third.kill()
	live := []*peerNode{leader, follower}
	eventually(t, "the dead server is removed", func() bool {
		_, err := leaderOf(t, live...).plane.removePeer(t.Context(), third.cfg.ID)
		return err == nil
	})
	for _, p := range follower.plane.peers() {
		if p.ID == third.cfg.ID && p.Voter {
			t.Errorf("%s still votes", p.Node)
		}
	}
}

// Who leaves stays out while it drains, whoever leads meanwhile and however old
// the list of members is that it knows; and a leave is one change of the voters.
func TestCluster_LeaveAndDrain(t *testing.T) {
	t.Parallel()
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("Leader=%t", leads), func(t *testing.T) {
			var nodes []*peerNode
			for _, name := range []string{"a", "b", "c"} {
				n := newPeer(t, name, 3, nodes[:min(1, len(nodes))]...)
				n.cfg.BeatTime = 2 * electionTicks * testTick // as in production: the lists of members are older than a leader
				n.start()
				nodes = append(nodes, n)
			}
			voters(t, "a b c", nodes...)
			leader := leaderOf(t, nodes...)
			leaver := nodes[(slices.Index(nodes, leader)+1)%3]
			if leads {
				leaver = leader
			}
			before := len(voterEntries(t, leaver))
			leaver.must(leaver.plane.leave(t.Context()))
			rest := slices.DeleteFunc(slices.Clone(nodes), func(n *peerNode) bool { return n == leaver })
			names := rest[0].cfg.Name + " " + rest[1].cfg.Name
			for range 20 { // time for leaders to do wrong, and one more change of them
				put(t, "while it drains", rest...)
				pause(t.Context(), testTick)
			}
			leaderOf(t, rest...).cluster.transferLeadership(t.Context())
			put(t, "under the next leader", rest...)
			voters(t, names, rest...)
			same(t, rest...)
			if all := voterEntries(t, rest[0]); len(all) != before+1 {
				t.Errorf("a leave took %d changes of the voters, want 1", len(all)-before)
			}
			leaver.kill()
			put(t, "when it is gone", rest...)
		})
	}
}

// voterEntries returns the lists of voters in a server's log.
func voterEntries(t testing.TB, n *peerNode) (lists []string) {
	t.Helper()
	log, err := n.store.entries(1, math.MaxInt64)
	n.must(err)
	for _, e := range log {
		if e.Kind == entryVoters {
			lists = append(lists, string(e.Data))
		}
	}
	return lists
}

// Servers are upgraded one by one. A leader writes a new format when every voter
// has announced it; a server that meets one that it does not know stops applying,
// says so, does not lead, and goes on when it is upgraded.
func TestCluster_Formats(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 3)
	b := startPeer(t, "b", 3, a)
	old := newPeer(t, "c", 3, a)
	old.format = commandFormat - 1
	old.start()
	nodes := []*peerNode{a, b, old}
	voters(t, "a b c", nodes...)
	puts := 0
	written := func(nodes ...*peerNode) byte {
		t.Helper()
		puts++
		at := put(t, fmt.Sprint("job-", puts), nodes...).Index
		log, err := leaderOf(t, nodes...).store.entries(at, 1)
		a.must(err)
		return log[0].Data[0]
	}
	if got := written(nodes...); got != commandFormat-1 {
		t.Errorf("with an old voter, format %d is written, want %d", got, commandFormat-1)
	}
	same(t, nodes...)

	old.kill()
	old.format = 0
	old.start()
	eventually(t, "the new format is written", func() bool { return written(nodes...) == commandFormat })
	same(t, nodes...)

	old.kill()
	if got := written(a, b); got != commandFormat {
		t.Errorf("format %d is written, want %d", got, commandFormat)
	}
	old.format = commandFormat - 1
	old.start()
	eventually(t, "the old server says that it does not know the format", func() bool { return hasTrouble(old, "format that this version does not know") })
	halted := old.store.applied.Load()
	put(t, "more", a, b)
	if now := old.store.applied.Load(); now != halted || old.cluster.leading() {
		t.Errorf("the old server has applied %d entries, before %d; it leads: %t", now, halted, old.cluster.leading())
	}
	old.kill()
	old.format = 0
	old.start()
	same(t, nodes...)
	if hasTrouble(old, "format") {
		t.Error("the upgraded server does not know the format")
	}

	young := newPeer(t, "d", 0, a)
	young.format = commandFormat - 1
	young.start()
	eventually(t, "the leader says that the new server is too old", func() bool {
		return hasTrouble(leaderOf(t, nodes...), "d runs an older version")
	})
	voters(t, "a b c", nodes...)
	young.kill()
	young.format = 0
	young.start()
	voters(t, "a b c d", append(nodes, young)...)
	if hasTrouble(leaderOf(t, nodes...), "older version") {
		t.Error("the leader still says that an upgraded server is too old")
	}
}

// TestCluster_UnknownKind: a follower stores an entry of a kind that only later versions know, stops applying there, and
// says so.
func TestCluster_UnknownKind(t *testing.T) {
	t.Parallel()
	a := newPeer(t, "a", 0)
	a.start()
	self := server{"a", a.cfg.ID}
	leader, cluster := server{"b", "id of b"}, "the cluster"
	send := func(messages ...message) {
		t.Helper()
		a.must(a.cluster.call(t.Context(), func() { a.must(a.cluster.receive(cluster, messages, "")) }))
	}
	m := message{Kind: msgAppend, From: leader, To: self, Term: 1}
	eventually(t, "a takes part", func() bool { return a.plane.admitted.Load() })
	m.Entries = []entry{{1, 1, entryVoters, encodeVoters([]server{self, leader})}, {2, 1, entryVoters + 1, []byte("x")}, {3, 1, entryNoop, nil}}
	m.Last, m.Commit = 3, 3
	send(m)
	eventually(t, "a says that it does not know the entry", func() bool { return hasTrouble(a, "format that this version does not know") })
	if last, applied := a.cluster.status().Last, a.store.applied.Load(); last != 3 || applied != 1 {
		t.Errorf("the log ends at entry %d, and is applied up to %d, want 3 and 1", last, applied)
	}
}

// Servers of which one is too many, or that were told different numbers, found
// troubles returns how many things a node says are wrong.
func troubles(n *peerNode) int {
	problems, warnings := n.plane.health()
	return len(problems) + len(warnings)
}

// nothing, and say what to do. When that is done, they do.
func TestCluster_BootstrapRefusals(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 2)
	b := startPeer(t, "b", 3, a)
	eventually(t, "a says that b expects another number", func() bool { return hasTrouble(a, "--bootstrap-expect=3") })
	b.kill()
	b.cfg.Expect = 2
	b.cfg.Join = append(b.cfg.Join, a.plane.own().Addr)
	c := newPeer(t, "c", 2, a)
	// Both at once would be a race that either may win; so b waits until c is seen.
	c.start()
	voters(t, "a c", a, c)
	b.start()
	voters(t, "a b c", a, b, c) // one too many is taken in
	if troubles(a)+troubles(b)+troubles(c) > 0 {
		eventually(t, "no trouble", func() bool {
			return troubles(a)+troubles(b)+troubles(c) == 0
		})
	}
}

// The rules of founding, one by one.
func TestNextStep(t *testing.T) {
	empty := func(name string, expect int) record {
		return record{Name: name, ID: "id-" + name, Expect: expect, Empty: true, Server: true}
	}
	list := &bootstrapList{"x", []server{{"a", "id-a"}, {"b", "id-b"}}}
	accepted := func(name string, l *bootstrapList) record {
		r := empty(name, 2)
		r.Accepted = l
		return r
	}
	member := empty("m", 0)
	member.Cluster, member.Empty = "y", false
	restored := empty("r", 2)
	restored.Empty = false
	for _, test := range []struct {
		name   string
		self   record
		others []record
		list   *bootstrapList
		why    string
	}{
		{name: "Alone", self: empty("a", 1), list: &bootstrapList{"new", []server{{"a", "id-a"}}}},
		{name: "FirstProposes", self: empty("a", 2), others: []record{empty("b", 2)}, list: &bootstrapList{"new", list.Voters}},
		{name: "SecondWaits", self: empty("b", 2), others: []record{empty("a", 2)}, why: "waits for the list of servers from a"},
		{name: "SecondAccepts", self: empty("b", 2), others: []record{accepted("a", list)}, list: list},
		{name: "NotWithoutAll", self: accepted("a", list), others: []record{empty("b", 2)}, why: "when b agrees too"},
		{name: "GoneForGood", self: accepted("a", list), why: "empty their data directories"},
		{name: "AllAccepted", self: accepted("a", list), others: []record{accepted("b", list)}, list: list},
		{name: "AcceptedAnother", self: accepted("a", list), others: []record{accepted("b", &bootstrapList{"z", nil})}, why: "has agreed to make another cluster"},
		{name: "OthersHaveFounded", self: accepted("a", list), others: []record{func() record { r := member; r.ID, r.Cluster = "id-b", "x"; return r }()}, list: list},
		{name: "TooFew", self: empty("a", 3), others: []record{empty("b", 3)}, why: "waits for 1 more"},
		{name: "TooMany", self: empty("a", 2), others: []record{empty("b", 2), empty("c", 2)}, why: "3 servers were started with --bootstrap-expect=2: stop one"},
		{name: "OtherNumber", self: empty("a", 2), others: []record{empty("b", 3)}, why: "start both with the same number"},
		{name: "WithoutExpect", self: empty("a", 0), others: []record{empty("b", 0)}, why: "knows none"},
		{name: "DoesNotCount", self: empty("a", 1), others: []record{empty("b", 0)}, list: &bootstrapList{"new", []server{{"a", "id-a"}}}},
		{name: "ClusterIsThere", self: empty("a", 2), others: []record{empty("b", 2), member}, why: "waits until it joins the cluster of m"},
		{name: "NotOnTheList", self: empty("c", 2), others: []record{accepted("a", list)}, why: "waits until it joins the cluster of a"},
		{name: "RestoredOther", self: empty("a", 2), others: []record{restored}, why: "restored from a backup"},
		{name: "RestoredMeetsCluster", self: restored, others: []record{member}, why: "cannot join the cluster of m"},
		{name: "RestoredWaits", self: restored, why: "makes a cluster alone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			list, why := nextStep(test.self, test.others, "new")
			if !reflect.DeepEqual(list, test.list) || !strings.Contains(why, test.why) || test.why == "" && why != "" {
				t.Errorf("got %v, %q; want %v, %q", list, why, test.list, test.why)
			}
		})
	}
}

// Who does not have the cluster key gets no connection, in either direction.
func TestPlane_Key(t *testing.T) {
	t.Parallel()
	a := newPeer(t, "a", 1)
	var log lockedBuffer
	a.log = slog.New(slog.NewTextHandler(&log, nil))
	a.start()
	voters(t, "a", a)
	b := newPeer(t, "b", 0, a)
	b.cfg.Key = bytes.Repeat([]byte{8}, 32)
	b.start()
	err := b.plane.sendHeartbeat(t.Context(), a.plane.own().Addr, gossip{From: b.plane.own()})
	if !errors.Is(err, errRefused) || !errors.Is(err, errOtherKey) {
		t.Errorf("a heartbeat with another key: %v, want %v", err, errOtherKey)
	}
	eventually(t, "b says that a has another key", func() bool { return hasTrouble(b, "has another cluster key") })
	// One that was known, and has been silent for so long that it is not called in each round, is still said to have it.
	c, err := newPlane(planeConfig{record: record{ID: "c", Name: "c"}, Bind: "127.0.0.1:0", Key: b.cfg.Key, BeatTime: testBeat}, nil, a.log)
	a.must(err)
	defer c.listener.Close()
	c.known["a"] = &contact{record: a.plane.own(), lastSeen: time.Now().Add(-time.Hour)}
	for range 2 {
		c.sendHeartbeats(t.Context(), nil)
		if _, warnings := c.health(); !strings.Contains(fmt.Sprint(warnings), "has another cluster key") {
			t.Error("a node with another key is forgotten while it is not called")
		}
	}
	if text := log.String(); strings.Count(text, "a node with another cluster key calls this one") != 1 || refusedBy(a, "key") == 0 {
		t.Errorf("a has counted %v and logs, want one word of the other key\n%s", refusedBy(a, "key"), text)
	}
	// One that would talk to anybody is not talked to, and neither is one without TLS.
	loose, err := clusterTLS(b.cfg.Key)
	a.must(err)
	loose.VerifyConnection = nil
	for name, dial := range map[string]func(string) (net.Conn, error){
		"another key": func(addr string) (net.Conn, error) { return tls.Dial("tcp", addr, loose) },
		"no TLS":      func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) },
	} {
		conn, err := dial(a.plane.own().Addr)
		a.must(err)
		fmt.Fprintf(conn, "POST /self HTTP/1.1\r\nHost: localhost\r\n%s: %s\r\n\r\n", headerFormat, planeFormat)
		a.must(conn.SetReadDeadline(time.Now().Add(patience)))
		if text, err := io.ReadAll(conn); bytes.Contains(text, []byte("200 OK")) {
			t.Errorf("%s: the plane answers %q, %v", name, text, err)
		}
		conn.Close()
	}
	if n := len(a.plane.members()); n != 1 {
		t.Errorf("%d members, want 1", n)
	}

	if p, err := newPlane(planeConfig{record: record{Name: "x"}, Bind: "127.0.0.1:0"}, nil, a.log); err == nil {
		a.must(p.listener.Close())
		t.Error("there is a plane without a key")
	}
}

// What another cluster sends, what has an unknown format, is malformed or too
// large is refused and counted, and nothing changes.
func TestPlane_Refusals(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	put(t, "one", a)
	before, err := a.store.dump()
	a.must(err)
	term := a.cluster.status().Term
	self := server{"a", a.cfg.ID}
	vote := message{Kind: msgVote, From: server{"x", "id-x"}, To: self, Term: 99}
	pack := func(v ...message) []byte {
		data, err := json.Marshal(v)
		a.must(err)
		return data
	}
	foreign := map[string]string{headerCluster: "another"}
	crowd, err := json.Marshal(gossip{record{Name: "x", ID: "id-x", Status: memberAlive}, make([]contact, membersMax+1)})
	a.must(err)
	misdirected := vote
	misdirected.To.ID = "id-y"
	entries := message{Kind: msgAppend, From: vote.From, To: self, Term: 99, Entries: []entry{{Index: 5, Term: 1}}}
	for _, test := range []struct {
		name, path string
		body       []byte
		header     map[string]string
		counter    string
	}{
		{name: "Foreign", path: "/raft", body: pack(vote), header: foreign, counter: "foreign"},
		{name: "Malformed", path: "/raft", body: pack(vote)[:20], counter: "malformed"},
		{name: "MalformedForTheProtocol", path: "/raft", body: pack(entries), counter: "malformed"},
		{name: "Misdirected", path: "/raft", body: pack(misdirected), counter: "misdirected"},
		{name: "TooLarge", path: "/raft", body: make([]byte, rpcBytesMax+1), counter: "too_large"},
		{name: "GreetingTooLarge", path: "/members", body: []byte(`{"Others": [` + strings.Repeat(`{},`, gossipBytesMax/3) + `{}]}`), counter: "too_large"},
		{name: "CallOfForeign", path: "/dispatch", body: []byte("{}"), header: foreign, counter: "foreign"},
		{name: "CallToAnother", path: "/dispatch", body: []byte("{}"), header: map[string]string{headerTo: "id-y"}, counter: "misdirected"},
		{name: "CallFormat", path: "/dispatch", body: []byte("{}"), header: map[string]string{headerFormat: "1"}, counter: "format"},
		{name: "CallMalformed", path: "/dispatch", body: []byte("[]"), counter: "malformed"},
		{name: "Greeting", path: "/members", body: []byte("{}"), counter: "malformed"},
		{name: "SnapshotWithoutFile", path: "/raft", body: pack(message{Kind: msgSnapshot, From: vote.From, To: self, Term: term + 1, Prev: position{1_000, term}, Voters: []server{self}}), counter: "malformed"},
		{name: "TermJump", path: "/raft", body: pack(message{Kind: msgVoteNo, From: vote.From, To: self, Term: 1 << 40}), counter: "malformed"},
		{name: "Outcome", path: "/results", body: []byte(`[{"execution": 1, "node": "a", "outcome": "lost"}]`), counter: "malformed"},
		{name: "Members", path: "/members", body: crowd, counter: "malformed"},
		{name: "Snapshot", path: "/snapshot", header: map[string]string{headerMessage: string(pack(vote))}, counter: "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			count := refusedBy(a, test.counter)
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+a.plane.own().Addr+test.path, bytes.NewReader(test.body))
			a.must(err)
			a.plane.sign(r.Header, a.plane.own())
			for k, v := range test.header {
				r.Header.Set(k, v)
			}
			if resp, err := a.plane.calls.Do(r); err == nil { // a body that is too large may break the connection
				resp.Body.Close()
			}
			eventually(t, "it is counted", func() bool { return refusedBy(a, test.counter) == count+1 })
		})
	}
	after, err := a.store.dump()
	a.must(err)
	if after != before || a.cluster.status().Term != term || !a.cluster.leading() {
		t.Errorf("something changed: term %d, before %d; state\n%s\nbefore\n%s", a.cluster.status().Term, term, after, before)
	}
}

// A node that tells of ever more others makes no server slower: it knows a bounded
// number of them, and greets and brings up to date fewer.
func TestPlane_ManyMembers(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	put(t, "one", a)
	self := a.plane.own()
	for round := range 10 {
		g := gossip{From: record{Name: "x", ID: "id-x", Incarnation: 1, Beat: uint64(round + 1), Addr: "127.0.0.1:1", Status: memberAlive, Cluster: self.Cluster}}
		for i := range membersMax - 1 {
			name := fmt.Sprintf("x%d-%d", round, i)
			g.Others = append(g.Others, contact{record: record{Name: name, ID: name, Incarnation: 1, Addr: "127.0.0.1:1", Server: i%2 == 0, Status: memberAlive, Cluster: self.Cluster}})
		}
		var answer gossip
		a.must(a.plane.exchange(t.Context(), a.plane.calls, self, "/members", g, &answer))
		if size, err := json.Marshal(answer); err != nil || len(size) > gossipBytesMax {
			t.Errorf("the answer has %d bytes, %v, more than a node takes", len(size), err)
		}
	}
	began := time.Now()
	put(t, "two", a)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("a write took %v", took)
	}
	if all := len(a.plane.all()); all > membersMax+1 {
		t.Errorf("%d nodes are known, want at most %d", all, membersMax+1)
	}
}

// Two clusters that meet stay two, and each says what to do.
func TestPlane_ForeignCluster(t *testing.T) {
	t.Parallel()
	a, b := startPeer(t, "a", 1), startPeer(t, "b", 1)
	voters(t, "a", a)
	voters(t, "b", b)
	b.kill()
	b.join(a)
	b.start()
	eventually(t, "b says that a belongs to another cluster", func() bool { return hasTrouble(b, "two clusters are never merged") })
	put(t, "of-a", a)
	put(t, "of-b", b)
	if _, err := a.store.job("of-b"); !errors.Is(err, errNoJob) {
		t.Errorf("a job of b on a: %v", err)
	}
	if len(a.plane.members())+len(b.plane.members()) != 2 {
		t.Errorf("members: %v and %v", a.plane.members(), b.plane.members())
	}
	// An agent that has served one cluster does not serve another.
	w := startWorker(t, "w", a)
	eventually(t, "w belongs to a's cluster", func() bool { return w.plane.clusterID() == a.plane.clusterID() })
	w.kill()
	w.cfg.Join = nil
	w.join(b)
	w.start()
	eventually(t, "w says that b belongs to another cluster", func() bool { return hasTrouble(w, "empty --data-dir") })
}

// TestPlane_Adopt: an agent that may follows the cluster that it meets in the place of its own, once that is silent and
// not before, and begins again. Without it the agent says what to do.
func TestPlane_Adopt(t *testing.T) {
	t.Parallel()
	a, b := startPeer(t, "a", 1), startPeer(t, "b", 1)
	voters(t, "a", a)
	voters(t, "b", b)
	w, stays := newPeer(t, "w", 0, a, b), newPeer(t, "x", 0, a, b)
	w.cfg.Adopt = true
	for _, n := range []*peerNode{w, stays} {
		n.cfg.Server = false
		n.cfg.Join = n.cfg.Join[:1]
		n.start()
		eventually(t, "the agent belongs to a's cluster", func() bool { return n.plane.clusterID() == a.plane.clusterID() })
		n.kill()
		n.cfg.Join = nil
		n.join(a, b)
		n.start()
	}
	eventually(t, "both are told that b belongs to another cluster", func() bool { return hasTrouble(w, "--adopt") && hasTrouble(stays, "--adopt") })
	if w.dir.Cluster != a.plane.clusterID() {
		t.Error("the agent has left its cluster while that was there")
	}
	first := w.cfg.Incarnation
	a.kill()
	w.ended.Wait()
	if !errors.Is(w.errs[0], errAdopted) || w.dir.Cluster != b.plane.clusterID() {
		t.Fatalf("the agent ended with %v and belongs to %s, want it to belong to %s", w.errs[0], w.dir.Cluster, b.plane.clusterID())
	}
	w.errs[0] = nil
	w.kill()
	w.start()
	eventually(t, "the agent is a member of b's cluster", func() bool {
		nodes := b.plane.nodes()
		return len(nodes) == 2 && nodes[1].Name == "w" && nodes[1].Incarnation != first
	})
	if stays.plane.clusterID() == b.plane.clusterID() {
		t.Error("an agent without --adopt followed another cluster")
	}
}

// The name of a live node cannot be taken, and neither can its id: the newcomer
// takes no part, and says why. When the first is gone, the newcomer is in.
func TestPlane_Clash(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	first := startWorker(t, "w", a)
	eventually(t, "w is a member", func() bool { return len(a.plane.nodes()) == 2 })
	second := startWorker(t, "w", a)
	eventually(t, "the second w is told that its name is taken", func() bool { return hasTrouble(second, "--node-name") })
	self := startPeer(t, "a", 0, a)
	eventually(t, "the second a is told that its name is taken", func() bool { return hasTrouble(self, "--node-name") })
	if second.plane.admitted.Load() || self.plane.admitted.Load() {
		t.Error("a node whose name is taken takes part")
	}
	self.kill()

	twin := newPeer(t, "w", 0, a)
	twin.cfg.Server = false
	for _, name := range []string{nodeFile, peersFile} {
		doc, err := os.ReadFile(filepath.Join(first.cfg.Dir, name))
		if !errors.Is(err, os.ErrNotExist) {
			twin.must(err)
			twin.must(os.WriteFile(filepath.Join(twin.cfg.Dir, name), doc, 0o600))
		}
	}
	twin.start()
	eventually(t, "the twin is told that its id is taken", func() bool { return hasTrouble(twin, "empty --data-dir") })
	if got := a.plane.nodes()[1].Incarnation; got != first.cfg.Incarnation {
		t.Errorf("w has incarnation %d, want that of the first process, %d", got, first.cfg.Incarnation)
	}
	twin.kill()

	first.kill()
	eventually(t, "the second w is in", func() bool {
		nodes := a.plane.nodes()
		return len(nodes) == 2 && nodes[1].Incarnation == second.cfg.Incarnation && second.plane.admitted.Load()
	})
}

// A node that is silent counts as failed, one that comes back elsewhere is
// itself at once, and one that was not heard for a day is forgotten.
func TestPlane_Members(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	w := startWorker(t, "w", a)
	status := func(name string) int {
		for _, m := range a.plane.members() {
			if m.Name == name {
				return m.Status
			}
		}
		return 0
	}
	eventually(t, "w is alive", func() bool { return status("w") == memberAlive })
	w.kill()
	eventually(t, "w has failed", func() bool { return status("w") == memberFailed })
	w.start()
	eventually(t, "w is back", func() bool { return status("w") == memberAlive })
	addr := w.plane.own().Addr
	w.kill() // and back before anybody counts it as failed
	w.start()
	eventually(t, "w is where it is now", func() bool {
		r, ok := a.plane.byName("w")
		return ok && r.Addr != addr && r.Addr == w.plane.own().Addr && r.Incarnation == w.cfg.Incarnation
	})
	w.plane.leaving()
	eventually(t, "w is leaving", func() bool { return status("w") == memberLeaving })
	w.kill()
	eventually(t, "w has left", func() bool { return status("w") == memberLeft })
	a.plane.forget(time.Now().Add(forgetAfter / 2))
	if status("w") != memberLeft {
		t.Error("w was forgotten within a day")
	}
	a.plane.forget(time.Now().Add(forgetAfter + time.Minute))
	if status("w") != 0 {
		t.Error("w was not forgotten after a day")
	}
}

// A node is overdue from one and a half heartbeats on, and for a new leader the
// old one is until it is heard again.
func TestPlane_Overdue(t *testing.T) {
	now := time.Now()
	p := &plane{cfg: planeConfig{record: record{Name: "a", ID: "id-a", Server: true}, BeatTime: time.Second}, log: slog.New(slog.DiscardHandler), known: map[string]*contact{}}
	p.self = record{Name: "a", ID: "id-a", Status: memberAlive, Server: true}
	p.server = &cluster{}
	r := record{Name: "b", ID: "id-b", Beat: 1, Status: memberAlive, Server: true, Leads: true}
	overdue := func(want bool) {
		t.Helper()
		if list := p.nodes(); len(list) != 2 || list[0].Overdue || list[1].Overdue != want {
			t.Errorf("nodes: %+v, want b overdue %t", list, want)
		}
	}
	p.noteLocked(r, 1400*time.Millisecond, true, now)
	overdue(false)
	p.server.leaderTerm.Store(2)
	overdue(true)
	r.Beat, r.Leads = 2, false
	p.noteLocked(r, 1400*time.Millisecond, true, now)
	overdue(false)
	r.Beat = 3
	p.noteLocked(r, 1600*time.Millisecond, true, now)
	overdue(true)
}

// What a server has perhaps done is not asked of the next one.
func TestPlane_ReportOnce(t *testing.T) {
	t.Parallel()
	w := startWorker(t, "w")
	var asked atomic.Int64
	for _, name := range []string{"a", "b", "c"} {
		silent := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/results" {
				asked.Add(1)
			}
			panic(http.ErrAbortHandler)
		}))
		silent.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		silent.TLS = w.plane.tls.Clone()
		silent.StartTLS()
		defer silent.Close()
		w.plane.learn(gossip{From: record{Name: name, ID: "id-" + name, Addr: silent.Listener.Addr().String(), Server: true, Status: memberAlive}})
	}
	if _, err := w.plane.reportToLeader(t.Context(), []result{{Execution: 5, Node: "x", Outcome: outcomeSuccess}}); err == nil || errors.Is(err, errRefused) || asked.Load() != 1 {
		t.Errorf("%d servers were sent the results, %v; want one, and nobody to know whether it took them", asked.Load(), err)
	}
}

// A leader that cannot read its log says so to its operator.
func TestCluster_UnreadableLog(t *testing.T) {
	s := newStore(t)
	c := &cluster{plane: &plane{log: slog.New(slog.DiscardHandler), problems: map[string]string{}}, store: s}
	rename := func(from, to string) {
		if err := execFile(t.Context(), s.path, "ALTER TABLE "+from+" RENAME TO "+to); err != nil {
			t.Fatal(err)
		}
	}
	rename("log", "lost")
	defer rename("lost", "log")
	if err := c.fill(&message{Kind: msgAppend, Prev: position{1, 1}, Last: 2}); err == nil || !strings.Contains(c.plane.problems["log"], "cannot read its log") {
		t.Errorf("%v, and %q", err, c.plane.problems)
	}
}

// What is sent while a call is under way waits: the small messages go in one call, the large one after the other, and a
// link on which nothing waits is forgotten, as servers are replaced.
func TestCluster_Links(t *testing.T) {
	p := &plane{known: map[string]*contact{}} // it knows no address, so each call fails
	c := &cluster{plane: p, log: slog.New(slog.DiscardHandler), links: map[linkKey][]message{}, events: make(chan func() error)}
	c.raft = newTestRaft(serverA, threeServers, 1, 2)
	for _, test := range []struct {
		m     message
		calls int
	}{{message{To: serverB}, 2}, {message{To: serverB, Kind: msgSnapshot}, 1 + linkQueueMax}} {
		c.send(t.Context(), slices.Repeat([]message{test.m}, linkQueueMax+2))
		k, calls := linkKey{serverB, test.m.isBulk()}, 0
		for ; len(c.links) > 0; calls++ {
			if n := len(c.links[k]); calls == 0 && n != linkQueueMax {
				t.Errorf("%d messages wait, want %d", n, linkQueueMax)
			}
			if err := (<-c.events)(); err != nil {
				t.Fatal(err)
			}
		}
		if calls != test.calls {
			t.Errorf("%d messages went in %d calls, want %d", linkQueueMax+1, calls, test.calls)
		}
	}
	if n := p.refused[slices.Index(planeReasons, "dropped")].Load(); n != 2 {
		t.Errorf("%d messages were dropped, want one of each kind", n)
	}
}

// A server that is to found a cluster alone does so when all that it was told of
// have answered, and joins the cluster that is there; its own name is no stranger.
func TestCluster_FoundAlone(t *testing.T) {
	t.Parallel()
	elsewhere, own := freeAddr(t), freeAddr(t)
	named := func(addr string) string { return strings.Replace(addr, "127.0.0.1", "localhost", 1) }
	b := newPeer(t, "b", 1)
	b.cfg.Bind, b.cfg.Join = own, []string{elsewhere, named(own)}
	b.start()
	eventually(t, "b waits", func() bool { return hasTrouble(b, "makes a cluster alone once") && b.plane.own().Beat > 2*silentBeats })
	if b.plane.clusterID() != "" || hasTrouble(b, "no node answers at localhost") {
		t.Errorf("b belongs to %q, or says that it does not answer itself", b.plane.clusterID())
	}
	a := newPeer(t, "a", 1)
	a.cfg.Bind = elsewhere
	a.start()
	voters(t, "a b", a, b)

	own = freeAddr(t)
	c := newPeer(t, "c", 1)
	c.cfg.Bind, c.cfg.Join = own, []string{named(own)}
	c.start()
	voters(t, "c", c)
}

// A node that is refused where it was told to join says why when it gives up.
func TestPlane_JoinRefused(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	startWorker(t, "w", a)
	eventually(t, "w is a member", func() bool { return len(a.plane.nodes()) == 2 })
	second := newPeer(t, "w", 0, a)
	second.cfg.Server, second.cfg.JoinTries = false, 1
	second.start()
	second.ended.Wait()
	if err := second.errs[0]; err == nil || !strings.Contains(err.Error(), "--node-name") {
		t.Errorf("the second w ended with %v", err)
	}
	second.cancel()
	second.cancel = nil
	second.must(second.dir.close())
}

// A server that has been dead for long is neither called nor told of each second.
func TestPlane_Dead(t *testing.T) {
	p := &plane{cfg: planeConfig{record: record{Name: "a", ID: "id-a", Server: true}, BeatTime: time.Second}, log: slog.New(slog.DiscardHandler), known: map[string]*contact{}}
	start := time.Now()
	r := record{Name: "b", ID: "id-b", Addr: "b:1", Beat: 1, Status: memberAlive, Server: true}
	p.noteLocked(r, 0, true, start)
	calls, mentions := 0, 0
	for now := start; now.Before(start.Add(time.Hour)); now = now.Add(time.Second) {
		p.self.Beat++
		calls += len(p.targetsLocked(nil, now))
		mentions += len(p.gossipLocked(true, now).Others)
	}
	if calls < 60 || calls > 120 || mentions < 60 || mentions > 70 {
		t.Errorf("in the first hour it was called %d times and told of %d times; want about once a minute", calls, mentions)
	}
	r.Beat = 2
	p.noteLocked(r, 0, true, start.Add(time.Hour))
	if list := p.targetsLocked(nil, start.Add(time.Hour)); len(list) != 1 {
		t.Errorf("when it is back %v are called", list)
	}
}

// A server whose clock is off says so, and which other.
func TestPlane_ClockTrouble(t *testing.T) {
	now := time.Now()
	p := &plane{cfg: planeConfig{record: record{Name: "a", Server: true}, BeatTime: time.Second}, log: slog.New(slog.DiscardHandler), known: map[string]*contact{}}
	r := record{Name: "b", ID: "id-b", Beat: 1, Status: memberAlive, Server: true, Clock: now.Add(-3 * time.Second).UnixNano()}
	p.noteLocked(r, 2*time.Second, false, now)
	if why := p.clockProblem(); why != "" {
		t.Errorf("one second apart: %s", why)
	}
	r.Beat, r.Clock = 2, now.Add(time.Hour).UnixNano()
	p.noteLocked(r, 0, false, now)
	if why := p.clockProblem(); !strings.Contains(why, "a and b differ by about 1h0m0s") {
		t.Errorf("an hour apart: %q", why)
	}
	r.Incarnation, r.Beat, r.Clock = 1, 0, 0
	p.noteLocked(r, 0, false, now.Add(time.Second))
	if why := p.clockProblem(); why != "" {
		t.Errorf("a node that has just started and sent no heartbeat yet: %s", why)
	}
}

// A heartbeat counts once, by whatever way it comes: servers that tell each
// other of a dead node do not keep it alive.
func TestPlane_HearLocked(t *testing.T) {
	now := time.Now()
	r := func(incarnation, beat uint64) record {
		return record{Name: "w", ID: "id-w", Incarnation: incarnation, Beat: beat, Status: memberAlive, Server: true}
	}
	other := record{Name: "w", ID: "id-v", Incarnation: 3, Beat: 1, Status: memberAlive, Server: true}
	forged := r(1, math.MaxUint64)
	for _, test := range []struct {
		name   string
		r      record
		age    time.Duration // the first was heard four seconds ago, with beat 10 of incarnation 1
		itself [2]bool
		want   bool
	}{
		{name: "Newer", r: r(1, 11), want: true},
		{name: "Echo", r: r(1, 10), age: time.Second},
		{name: "Older", r: r(1, 9)},
		{name: "NextProcess", r: r(2, 1), age: 3 * time.Second, want: true},
		{name: "FormerProcess", r: r(2, 99), age: 5 * time.Second},
		{name: "Namesake", r: other, age: 3 * time.Second, want: true},
		{name: "FormerNamesake", r: other, age: 5 * time.Second},
		{name: "LongAgo", r: r(1, 11), age: 2 * forgetAfter},
		{name: "OwnWord", r: r(1, 11), itself: [2]bool{true, true}, want: true},
		{name: "OwnWordAgain", r: r(1, 10), itself: [2]bool{true, true}},
		{name: "Hearsay", r: forged, itself: [2]bool{true, false}},
		{name: "HearsayOfAnotherProcess", r: r(2, 1), itself: [2]bool{true, false}},
		{name: "HearsayOfANamesake", r: other, itself: [2]bool{true, false}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &plane{cfg: planeConfig{record: record{Server: true}, BeatTime: time.Second}, log: slog.New(slog.DiscardHandler), known: map[string]*contact{}}
			age := 4 * time.Second
			if test.itself[0] {
				age = 0
			}
			p.noteLocked(r(1, 10), age, test.itself[0], now)
			c := p.byNameLocked("w")
			p.noteLocked(test.r, test.age, test.itself[1], now.Add(time.Millisecond))
			if got := p.byNameLocked("w"); len(p.known) != 1 || (got != c) != test.want || test.want && got.ID != test.r.ID {
				t.Errorf("%v is known, taken %t, want %t", got, got != c, test.want)
			}
		})
	}
	// What others have said of a node lasts until it says something itself.
	p := &plane{cfg: planeConfig{record: record{Server: true}, BeatTime: time.Second}, log: slog.New(slog.DiscardHandler), known: map[string]*contact{}}
	forged.Addr = "elsewhere:1"
	p.noteLocked(forged, 0, false, now)
	p.noteLocked(r(1, 11), 0, true, now.Add(time.Second))
	if c := p.byNameLocked("w"); c.Addr != "" {
		t.Errorf("%v is known, want the node's own word", c)
	}
	// A silent node of before makes way for another when a thousand are known; a live one does not.
	n := 0
	next := func(age time.Duration) {
		n++
		name := fmt.Sprintf("n%d", n)
		p.noteLocked(record{Name: name, ID: name, Incarnation: 1, Beat: 1, Status: memberAlive}, age, false, now)
	}
	next(time.Hour)
	for len(p.known) < membersMax {
		next(0)
	}
	next(0)
	next(0)
	if len(p.known) != membersMax || p.byNameLocked("n1") != nil || p.byNameLocked(fmt.Sprintf("n%d", n-1)) == nil || p.byNameLocked(fmt.Sprintf("n%d", n)) != nil {
		t.Errorf("%d nodes are known, want %d, and of the newest two one", len(p.known), membersMax)
	}
}

// Orders, questions, kills, outputs and results travel between nodes, and their
// errors say whether anything can have been done.
func TestPlane_Calls(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	b := startPeer(t, "b", 0, a)
	w := startWorker(t, "w", a)
	voters(t, "a b", a, b)
	eventually(t, "all know each other", func() bool {
		return len(a.plane.nodes()) == 3 && len(b.plane.nodes()) == 3 && len(w.plane.members()) == 3 && w.plane.clusterID() != ""
	})
	ctx := t.Context()
	leader := leaderOf(t, a, b)

	d := dispatch{Term: 1, Number: 1, Orders: []order{{Execution: 7, Job: "x"}}}
	for _, n := range []*peerNode{a, b, w} {
		d.Incarnation = n.cfg.Incarnation
		if err := a.cluster.start(n.cfg.Name, d); err != nil || len(n.orders) != 1 {
			t.Errorf("dispatch to %s: %v, it has %d orders", n.cfg.Name, err, len(n.orders))
		}
		answer, err := a.cluster.ask(n.cfg.Name, question{Executions: []int64{7}})
		if err != nil || string(answer.Held[0].Output) != "held by "+n.cfg.Name || answer.Incarnation != n.cfg.Incarnation {
			t.Errorf("question to %s: %v, %v", n.cfg.Name, answer, err)
		}
		if err := a.cluster.end(n.cfg.Name, kill{Execution: 9}); !errors.Is(err, errRefused) || !errors.Is(err, errUnknownExecution) {
			t.Errorf("kill on %s: %v, want refused: %v", n.cfg.Name, err, errUnknownExecution)
		}
		var out bytes.Buffer
		if err := b.plane.outputFrom(ctx, n.cfg.Name, 7, false, 0, &out); err != nil || out.String() != "printed on "+n.cfg.Name {
			t.Errorf("output from %s: %q, %v", n.cfg.Name, out.String(), err)
		}
		if printed, err := b.plane.printedOn(ctx, n.cfg.Name, []int64{7, 8}); err != nil || string(printed[7]) != "on "+n.cfg.Name || len(printed) != 1 {
			t.Errorf("printed on %s: %v, %v", n.cfg.Name, printed, err)
		}
		if err := b.plane.outputFrom(ctx, n.cfg.Name, 8, false, 0, &out); !errors.Is(err, errUnknownExecution) {
			t.Errorf("output of an unknown execution from %s: %v", n.cfg.Name, err)
		}
		if ids, err := n.plane.reportToLeader(ctx, []result{{Execution: 5, Node: "x", Outcome: outcomeSuccess}, {Execution: 6, Node: "x", Outcome: outcomeFailed}}); err != nil || !slices.Equal(ids, []int64{5, 6}) {
			t.Errorf("results from %s: taken %v, %v", n.cfg.Name, ids, err)
		}
	}
	leader.mu.Lock()
	if len(leader.reported) != 6 {
		t.Errorf("the leader has %d results, want 6", len(leader.reported))
	}
	leader.mu.Unlock()

	// Output that is followed comes part by part, until its reader goes.
	following, leave := context.WithCancel(ctx)
	r, pipe := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- a.plane.outputFrom(following, "w", 7, true, 0, pipe) }()
	part := make([]byte, len("printed on w"))
	if _, err := io.ReadFull(r, part); err != nil || string(part) != "printed on w" {
		t.Errorf("followed output: %q, %v", part, err)
	}
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("followed output ended with %v, want %v", err, context.Canceled)
	}

	for _, refusal := range []error{errStaleTerm, errStaleNumber, errStopping, errQueueFull} {
		w.mu.Lock()
		w.refusal = refusal
		w.mu.Unlock()
		d.Incarnation = w.cfg.Incarnation
		if err := a.cluster.start("w", d); !errors.Is(err, errRefused) || !errors.Is(err, refusal) {
			t.Errorf("dispatch: %v, want refused: %v", err, refusal)
		}
	}
	d.Incarnation++
	if err := a.cluster.start("w", d); !errors.Is(err, errRefused) || !errors.Is(err, errOtherIncarnation) {
		t.Errorf("dispatch to another incarnation: %v", err)
	}
	if err := a.cluster.start("nobody", d); !errors.Is(err, errRefused) {
		t.Errorf("dispatch to nobody: %v, want %v", err, errRefused)
	}
	w.kill()
	// A kept-alive connection may have to break first.
	eventually(t, "a dispatch to a node that is gone is surely refused", func() bool { return errors.Is(a.cluster.start("w", d), errRefused) })

	// A node that takes a request and does not answer leaves us in doubt.
	silent := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	silent.TLS = a.plane.tls.Clone()
	silent.StartTLS()
	defer silent.Close()
	broken := record{Name: "s", ID: "id-s", Addr: silent.Listener.Addr().String(), Server: true, Status: memberAlive}
	a.plane.learn(gossip{From: broken})
	if err := a.cluster.start("s", d); err == nil || errors.Is(err, errRefused) {
		t.Errorf("dispatch to a node that breaks off: %v, want an error that is no refusal", err)
	}
}

// A still is the listener of a node that may stand still: what comes meanwhile lies
// in its sockets.
type still struct {
	net.Listener
	wakes  atomic.Pointer[chan struct{}] // closed when it goes on; nil: it never stood still
	closed atomic.Int64                  // connections
}

func (s *still) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	return &stillConn{conn, s}, err
}

type stillConn struct {
	net.Conn
	of *still
}

func (c *stillConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if wakes := c.of.wakes.Load(); wakes != nil {
		<-*wakes
	}
	return n, err
}

func (c *stillConn) Close() error {
	c.of.closed.Add(1)
	return c.Conn.Close()
}

// What a node that stands still was sent does not run when it wakes, once nobody waits
// for the answer any more.
func TestPlane_StandsStill(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	w := newPeer(t, "w", 0, a)
	w.cfg.Server = false
	listener := &still{}
	w.cfg.network = network{dial: new(net.Dialer).DialContext, chance: rand.Uint64, listen: func(network, address string) (net.Listener, error) {
		var err error
		listener.Listener, err = net.Listen(network, address)
		return listener, err
	}}
	w.start()
	eventually(t, "the leader knows the node", func() bool { return len(a.plane.nodes()) == 2 && w.plane.clusterID() != "" })
	d := dispatch{Term: 1, Number: 1, Incarnation: w.cfg.Incarnation, Orders: []order{{Execution: 7, Job: "x"}}}
	if err := a.cluster.start("w", d); err != nil {
		t.Fatal(err)
	}
	wakes := make(chan struct{})
	listener.wakes.Store(&wakes)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := callNode(ctx, a.plane, "w", pathDispatch, d, a.plane.start); err == nil || errors.Is(err, errRefused) {
		t.Errorf("a dispatch to a node that stands still: %v, want an error that is no refusal", err)
	}
	before := listener.closed.Load()
	close(wakes)
	eventually(t, "the node has read what lay in its socket", func() bool { return listener.closed.Load() > before })
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.orders) != 1 {
		t.Errorf("the node has taken %d orders, want the one of before", len(w.orders))
	}
}

// What a leader asks of a node that does not answer ends with its office: another
// office of this server must not wait for it.
func TestCluster_Duty(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	leaderOf(t, a)
	asked, over := make(chan struct{}), make(chan struct{})
	silent := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(asked); <-over }))
	silent.TLS = a.plane.tls.Clone()
	silent.StartTLS()
	defer silent.Close()
	defer close(over)
	a.plane.learn(gossip{From: record{Name: "s", ID: "id-s", Addr: silent.Listener.Addr().String(), Server: true, Status: memberAlive, Cluster: a.plane.clusterID()}})
	ended := make(chan error, 1)
	go func() {
		_, err := a.cluster.ask("s", question{})
		ended <- err
	}()
	<-asked
	a.must(a.cluster.call(t.Context(), a.cluster.stopLeading))
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a question ended with %v, want %v", err, context.Canceled)
	}
}

// What the driver has taken is executed, however much waits for it.
func TestCluster_Gather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{plane: &plane{}, store: &store{}, tickTime: tickTime, events: make(chan func() error)}
		c.raft = newTestRaft(serverA, threeServers, 1)
		c.progress.Store(&progress{})
		ctx, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		executed := 0
		for range 3 * gatherMax {
			callers.Go(func() {
				if err := c.post(ctx, func() error { executed++; return nil }); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // until all of them wait
		callers.Go(func() { c.drive(ctx) })
		synctest.Wait()
		cancel()
		callers.Wait()
		if executed != 3*gatherMax {
			t.Errorf("%d of %d events were executed", executed, 3*gatherMax)
		}
	})
}

// A caller that waits no longer for the log to be applied leaves nothing: a server that applies nothing lives long.
func TestCluster_WaitGivenUp(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	leaderOf(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), testTick)
	defer cancel()
	if err := a.cluster.waitApplied(ctx, math.MaxInt64); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an entry that does not come was awaited, with %v", err)
	}
	left := 0
	a.must(a.cluster.call(t.Context(), func() { left = len(a.cluster.awaited) }))
	if left != 0 {
		t.Errorf("%d waits are left, want none", left)
	}
}

// A driver that ends removes snapshots while those who receive them do so too, which is no error of either.
func TestCluster_SnapshotsRemovedTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 1_000 {
		file, err := os.CreateTemp(dir, snapshotPattern)
		if err = errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
	}
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() { errs <- removeSnapshots(dir) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err.Error()[:100])
		}
	}
}

// A client of any node writes through the leader, and reads its own write there.
func TestPlane_Forward(t *testing.T) {
	t.Parallel()
	nodes := trio(t)
	leader := leaderOf(t, nodes...)
	follower := nodes[(slices.Index(nodes, leader)+1)%3]
	agent := startWorker(t, "w", follower)
	eventually(t, "the agent knows the servers", func() bool { return len(agent.plane.members()) == 4 })
	for i, n := range []*peerNode{follower, agent} {
		for try := range 10 {
			name := fmt.Sprintf("job-%d-%d", i, try)
			r := httptest.NewRequest(http.MethodPost, "/v1/jobs/a%2Fb?x=1", strings.NewReader(name))
			r.Header.Set("Belfry-Actor", "somebody who only says so")
			w := httptest.NewRecorder()
			if err := n.api.forward(w, r.WithContext(t.Context()), "me", "id-1"); err != nil || w.Code != http.StatusOK {
				t.Fatalf("%v, status %d: %s", err, w.Code, w.Body)
			}
			if want := "me asked POST /v1/jobs/a%2Fb?x=1, id id-1"; w.Body.String() != want {
				t.Errorf("the leader was asked %q, want %q", w.Body, want)
			}
			if n == follower {
				if _, err := n.store.job(name); err != nil {
					t.Errorf("%s is not there after the answer: %v", name, err)
				}
			}
		}
	}
	for _, n := range nodes {
		if n != follower {
			n.kill()
		}
	}
	eventually(t, "without a leader nothing is done", func() bool {
		w := httptest.NewRecorder()
		err := follower.api.forward(w, httptest.NewRequest(http.MethodPost, "/v1/jobs", strings.NewReader("x")), "me", "id-2")
		return errors.Is(err, errNotLeader)
	})
}

// A server that starts again without --join finds the others by the addresses
// that it wrote down.
func TestPlane_Peers(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	w := startWorker(t, "w", a)
	eventually(t, "w is bound", func() bool { return w.plane.clusterID() != "" })
	eventually(t, "w has written where a is", func() bool {
		_, err := os.Stat(filepath.Join(w.cfg.Dir, peersFile))
		return err == nil
	})
	w.kill()
	w.cfg.Join = nil
	w.start()
	eventually(t, "w knows a again", func() bool { return len(w.plane.members()) == 2 })
}

// Join addresses are tried at their own pace, and given up if so configured.
func TestJoining(t *testing.T) {
	start := time.Now()
	j := &plane{cfg: planeConfig{Join: []string{"a", "b"}, JoinTries: 2, JoinPause: time.Second}}
	if got := j.joinsDue(start); len(got) != 2 {
		t.Errorf("at the start %v is due", got)
	}
	if got := j.joinsDue(start.Add(time.Second / 2)); len(got) != 0 {
		t.Errorf("too early %v is due", got)
	}
	if err := j.noteJoins(0, "no"); err != nil {
		t.Errorf("given up after one try: %v", err)
	}
	if got := j.joinsDue(start.Add(time.Second)); len(got) != 2 {
		t.Errorf("after a pause %v is due", got)
	}
	if err := j.noteJoins(0, ""); err == nil || !strings.Contains(err.Error(), "none of a, b answered") {
		t.Errorf("after two tries: %v", err)
	}
	if err := j.noteJoins(0, "the name is taken"); err == nil || !strings.Contains(err.Error(), "the name is taken") {
		t.Errorf("after two tries, refused: %v", err)
	}
	if err := j.noteJoins(1, ""); err != nil {
		t.Errorf("an answer, and yet: %v", err)
	}
	if err := j.noteJoins(0, "no"); err != nil {
		t.Errorf("given up after an answer: %v", err)
	}
}

// A server that stood still for an election timeout does not believe that it
// leads, whichever clock noticed; unless it is alone, when nobody can have
// taken over.
func TestCluster_NoticePause(t *testing.T) {
	t.Parallel()
	alone := startPeer(t, "a", 1)
	leaderOf(t, alone)
	alone.must(alone.cluster.call(t.Context(), func() {
		now := time.Now()
		alone.cluster.noticePause(now.Add(-time.Hour), now)
		if !alone.cluster.raft.status().Leading {
			t.Error("a server that is alone does not lead after a pause")
		}
	}))
	for _, c := range []struct {
		pause time.Duration
		wall  bool // only the wall clock has gone on
		leads bool
	}{{pause: electionTicks * tickTime / 2, leads: true}, {pause: electionTicks * tickTime}, {pause: time.Hour, wall: true}} {
		now := time.Now()
		then := now.Add(-c.pause)
		if c.wall {
			now, then = now.Add(c.pause).Round(0), now
		}
		if got := stoodStill(then, now, electionTicks*tickTime) == 0; got != c.leads {
			t.Errorf("%+v: goes on leading: %v", c, got)
		}
	}
}

// forged are messages that only somebody with the cluster key and bad intent, or
// with a broken disk, can send to a server of threeServers in a low term.
func forged() map[string]message {
	forged := map[string]message{
		"TermJump":        {Kind: msgAppend, Term: termJumpMax + 100},
		"VoteTermJump":    {Kind: msgVoteNo, Term: termJumpMax + 100},
		"LastTerm":        {Kind: msgAppend, Term: math.MaxInt64},
		"UnstorableTerm":  {Kind: msgVote, Term: 1 << 63, Prev: position{9, 1}},
		"NothingThere":    {Kind: msgAppend, Term: 3, Prev: position{1_000, 0}, Commit: 1_000},
		"NothingAtZero":   {Kind: msgAppend, Term: 3, Prev: position{0, 1}},
		"SnapshotOfZero":  {Kind: msgSnapshot, Term: 3, Prev: position{1_000, 0}, Voters: threeServers},
		"UnstorableIndex": {Kind: msgSnapshot, Term: 3, Prev: position{1 << 63, 3}, Voters: threeServers},
	}
	for name, m := range forged {
		m.From, m.To = serverB, serverA
		forged[name] = m
	}
	return forged
}

// TestRaft_Forged: a message that nobody can mean is refused and changes
// nothing; only an empty server believes any term that can be stored.
func TestRaft_Forged(t *testing.T) {
	for name, m := range forged() {
		t.Run(name, func(t *testing.T) {
			r := newTestRaft(serverA, threeServers, 1)
			before := r.status()
			if err := r.step(m); !errors.Is(err, errMalformed) {
				t.Errorf("got %v, want %v", err, errMalformed)
			}
			if after := r.status(); !reflect.DeepEqual(after, before) {
				t.Errorf("%v became %v", before, after)
			}
			if err := r.check(); err != nil {
				t.Error(err)
			}
		})
	}
	r := newTestRaft(serverA, threeServers, 1)
	r = newRaft(r.cfg, saved{}, r.rnd)
	if err := r.step(forged()["TermJump"]); err != nil || r.status().Term != termJumpMax+100 {
		t.Errorf("an empty server: term %d, %v; want that of its cluster", r.status().Term, err)
	}
}

// FuzzMessages: whatever a peer sends, the protocol does not panic, and what it
// cannot mean changes nothing.
func FuzzMessages(f *testing.F) {
	data, err := json.Marshal([]message{
		{Kind: msgAppend, From: serverB, To: serverA, Term: 3, Prev: position{1, 1}, Last: 3, Commit: 2, Entries: []entry{{2, 3, entryCommand, []byte("five")}, {3, 3, entryNoop, nil}}},
		{Kind: msgAppendReply, From: serverB, To: serverA, Term: 3, Match: 6, Hint: position{5, 3}, Reject: true},
		{Kind: msgSnapshot, From: serverB, To: serverA, Term: 3, Prev: position{9, 3}, Voters: threeServers},
		{Kind: msgVote, From: serverC, To: serverA, Term: 4, Prev: position{9, 3}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)-1])
	f.Add([]byte("[{}]"))
	for _, m := range forged() {
		data, err := json.Marshal([]message{m})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var messages []message
		if json.Unmarshal(data, &messages) != nil {
			return
		}
		r := newTestRaft(serverA, threeServers, 1)
		for _, m := range messages {
			before := r.status()
			if err := r.step(m); errors.Is(err, errMalformed) || errors.Is(err, errMisdirected) {
				if after := r.status(); !reflect.DeepEqual(after, before) {
					t.Errorf("%v: %v, and yet %v became %v", m, err, before, after)
				}
			}
			if err := r.check(); err != nil {
				t.Fatalf("%v: %v", m, err)
			}
			settle(r)
			if err := r.check(); err != nil {
				t.Fatalf("%v, settled: %v", m, err)
			}
		}
	})
}

// When two of three servers are lost for good, the third goes on as a cluster of
// its own; what comes back of the old one stays out.
func TestCluster_Recover(t *testing.T) {
	t.Parallel()
	nodes := trio(t)
	put(t, "one", nodes...)
	same(t, nodes...)
	old := nodes[0].plane.clusterID()
	for _, n := range nodes {
		n.kill()
	}
	last, lost := nodes[0], nodes[1]
	last.must(recoverServer(last.cfg.Dir, "new-cluster"))
	last.cfg.Join, lost.cfg.Join = nil, nil
	last.must(os.Remove(filepath.Join(last.cfg.Dir, peersFile)))
	last.start()
	voters(t, "a", last)
	put(t, "two", last)
	if _, err := last.store.job("one"); err != nil {
		t.Errorf("a job of the old cluster: %v", err)
	}
	fresh := startPeer(t, "d", 0, last)
	voters(t, "a d", last, fresh)
	same(t, last, fresh)
	m, err := fresh.store.meta()
	if last.must(err); m.ClusterID != "new-cluster" || old == m.ClusterID {
		t.Errorf("the new cluster is %s in the state, the old was %s", m.ClusterID, old)
	}
	lost.join(last)
	lost.start()
	eventually(t, "the lost server is told that it belongs to another cluster", func() bool { return hasTrouble(lost, "new-cluster") })
	fresh.kill()
	if err := recoverServer(t.TempDir(), "x"); err == nil {
		t.Error("recovered an empty directory")
	}
	s := newStore(t)
	if err := s.forceNewCluster("x"); !errors.Is(err, errNotVoter) {
		t.Errorf("recovering a server that votes nowhere: %v, want %v", err, errNotVoter)
	}
}

// A server started from a backup founds a cluster of its own with all that was
// in it, and takes in others.
func TestCluster_Backup(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	put(t, "one", a)
	file, snap, err := a.store.snapshotFile(t.Context())
	a.must(err)
	defer file.Close()
	put(t, "two", a)
	z := newPeer(t, "z", 1)
	copied, err := os.Create(filepath.Join(z.cfg.Dir, "belfry.db"))
	z.must(err)
	_, err = io.Copy(copied, file)
	z.must(errors.Join(err, copied.Close()))
	z.start()
	voters(t, "z", z)
	put(t, "three", z)
	y := startPeer(t, "y", 0, z)
	voters(t, "y z", y, z)
	same(t, y, z)
	if z.cfg.ID == a.cfg.ID || z.plane.clusterID() == a.plane.clusterID() {
		t.Error("the server that was started from a backup is the one that made it")
	}
	for name, want := range map[string]error{"one": nil, "two": errNoJob, "three": nil} {
		if _, err := y.store.job(name); !errors.Is(err, want) {
			t.Errorf("job %s: %v, want %v", name, err, want)
		}
	}
	if disk, err := y.store.saved(); err != nil || disk.Base.Index < snap.Index {
		t.Errorf("y has the log from %v on, %v; want from behind the backup at %v", disk.Base, err, snap.position)
	}
}

// BenchmarkCluster_Propose is what three servers on one machine take from 64
// clients, each answered when its job is durable on two of them.
func BenchmarkCluster_Propose(b *testing.B) {
	nodes := trio(b)
	leader := leaderOf(b, nodes...)
	names := make(chan int)
	var clients sync.WaitGroup
	for range 64 {
		clients.Go(func() {
			for i := range names {
				if _, err := leader.cluster.propose(b.Context(), putCommand(fmt.Sprint("job-", i))); err != nil {
					b.Error(err)
				}
			}
		})
	}
	b.ResetTimer()
	for i := range b.N {
		names <- i
	}
	close(names)
	clients.Wait()
	b.StopTimer()
	same(b, nodes...)
}

// TestPlane_Streams: outputs that many follow keep nobody from a request that
// is passed on, or from an output.
func TestPlane_Streams(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	leaderOf(t, a)
	w := startWorker(t, "w", a)
	eventually(t, "they know each other", func() bool { return w.plane.clusterID() != "" && len(a.plane.nodes()) == 2 })
	ctx, leave := context.WithCancel(t.Context())
	var following sync.WaitGroup
	begun := make(chan struct{})
	for range 2 * planeConnsPerNode {
		r, pipe := io.Pipe()
		following.Go(func() { a.plane.outputFrom(ctx, "w", 7, true, 0, pipe) })
		following.Go(func() {
			io.ReadFull(r, make([]byte, 1))
			begun <- struct{}{}
			io.Copy(io.Discard, r)
		})
		context.AfterFunc(ctx, func() { r.Close() })
	}
	for n := range 2 * planeConnsPerNode {
		select {
		case <-begun:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d outputs are followed, and no more", n)
		}
	}
	if err := a.plane.outputFrom(ctx, "w", 7, false, 0, io.Discard); err != nil {
		t.Error(err)
	}
	leave()
	following.Wait()
}

// TestCluster_WaitingBytes: what others are slow to take does not fill the
// memory of a leader whose own disk is quick.
func TestCluster_WaitingBytes(t *testing.T) {
	r := newTestRaft(serverA, threeServers, 1)
	elect(t, r)
	c := &cluster{raft: r}
	early := &proposal{done: make(chan applied, 1)}
	c.append(early)
	if o := <-early.done; !errors.Is(o.Err, errNotLeader) || len(c.waiting) != 0 {
		t.Errorf("a proposal between two offices: %v, and %d wait", o.Err, len(c.waiting))
	}
	c.leaderTerm.Store(r.status().Term)
	busy := 0
	for range 100 {
		p := &proposal{data: make([]byte, commandBytesMax), done: make(chan applied, 1)}
		c.append(p)
		settle(r)
		select {
		case o := <-p.done:
			if !errors.Is(o.Err, errBusy) {
				t.Fatal(o.Err)
			}
			busy++
		default:
		}
	}
	if want := 100 - waitingBytesMax/commandBytesMax; busy != want {
		t.Errorf("%d of 100 large proposals are put off, want %d", busy, want)
	}
	c.stopLeading()
	if c.waitingBytes != 0 {
		t.Errorf("%d bytes wait although nobody does", c.waitingBytes)
	}
}

// TestCluster_ProposeLate: a proposal that reaches a driver which has just
// ended is answered.
func TestCluster_ProposeLate(t *testing.T) {
	t.Parallel()
	n := startPeer(t, "a", 1)
	leaderOf(t, n)
	n.kill()
	n.cluster.leaderTerm.Store(1) // as it was a moment ago
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for range 10 { // whichever way the first select goes
		if _, err := n.cluster.propose(ctx, putCommand("x")); !errors.Is(err, errNotLeader) {
			t.Fatalf("a late proposal: %v, want %v", err, errNotLeader)
		}
	}
}

// strangerCert is a certificate that looks like one of the plane and is of another key.
func strangerCert(t *testing.T, public crypto.PublicKey, private crypto.Signer) tls.Certificate {
	t.Helper()
	form := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}, DNSNames: []string{"localhost", "a"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(crand.Reader, form, form, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// What does not prove the key is answered nothing, and told nothing.
func TestPlane_Strangers(t *testing.T) {
	t.Parallel()
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	addr := a.plane.own().Addr
	public, private, err := ed25519.GenerateKey(crand.Reader)
	a.must(err)
	sameKind := strangerCert(t, public, private)
	elliptic, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	a.must(err)
	otherKind := strangerCert(t, elliptic.Public(), elliptic)
	// The certificate of the plane is no secret: anybody is shown it.
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	a.must(err)
	real := conn.ConnectionState().PeerCertificates[0].Raw
	conn.Close()
	borrowed := tls.Certificate{Certificate: [][]byte{real}, PrivateKey: private}
	behind := tls.Certificate{Certificate: append(slices.Clone(sameKind.Certificate), real), PrivateKey: private}
	key, err := clusterTLS(testKey)
	a.must(err)
	old := key.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12

	request := fmt.Sprintf("POST /self HTTP/1.1\r\nHost: localhost\r\n%s: %s\r\nConnection: close\r\n\r\n", headerFormat, planeFormat)
	for _, test := range []struct {
		name string
		tls  *tls.Config // nil: none
		ok   bool
	}{
		{"Key", key, true},
		{"PlainHTTP", nil, false},
		{"NoCertificate", &tls.Config{InsecureSkipVerify: true}, false},
		{"SameKindOfKey", &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{sameKind}}, false},
		{"OtherKindOfKey", &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{otherKind}}, false},
		{"Borrowed", &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &borrowed, nil }}, false},
		{"BorrowedBehind", &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{behind}}, false},
		{"OldVersion", old, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", addr)
			a.must(err)
			defer conn.Close()
			a.must(conn.SetDeadline(time.Now().Add(patience)))
			if test.tls != nil {
				conn = tls.Client(conn, test.tls)
			}
			_, err = io.WriteString(conn, request) // fails where the handshake does
			text, err2 := io.ReadAll(conn)
			if got := bytes.Contains(text, []byte("200 OK")) && bytes.Contains(text, []byte(a.plane.clusterID())); got != test.ok || bytes.Contains(text, []byte(a.cfg.ID)) != test.ok {
				t.Errorf("answered %q, %v, %v, want an answer: %t", text, err, err2, test.ok)
			}
		})
	}

	// The same from the other side: a node sends nothing to who listens in the
	// place of another.
	for name, cert := range map[string]tls.Certificate{"SameKindOfKey": sameKind, "OtherKindOfKey": otherKind, "BorrowedBehind": behind} {
		t.Run("Listens/"+name, func(t *testing.T) {
			heard := make(chan string, 100)
			stranger := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { heard <- r.URL.Path }))
			stranger.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
			stranger.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			stranger.StartTLS()
			defer stranger.Close()
			err := a.plane.sendHeartbeat(t.Context(), stranger.Listener.Addr().String(), gossip{From: a.plane.own()})
			if !errors.Is(err, errRefused) {
				t.Errorf("a heartbeat to a stranger: %v, want %v", err, errRefused)
			}
			if len(heard) > 0 {
				t.Errorf("a stranger hears %s", <-heard)
			}
		})
	}
	if n := len(a.plane.members()); n != 1 {
		t.Errorf("%d members, want 1", n)
	}
}

// planePaths are those of the plane's handlers, with the methods that they take
// and what is near them.
var planePaths = []string{"POST /members", "POST /self", "POST /dispatch", "POST /kill", "POST /question", "GET /output", "POST /printed", "POST /raft", "POST /snapshot", "POST /results", "POST /remove",
	"GET /api/v1/jobs", "POST /api/v1/jobs", "DELETE /api/v1/jobs/one", "POST /api/v1/jobs/one", "POST /api/v1/leave", "POST /api/v1/restore", "POST /api/v1/acl/bootstrap", "GET /api/v1/acl/self",
	"GET /api/", "POST /api", "GET /api/../self", "GET /api/%2e%2e/self", "POST //raft", "POST /nosuch", "GET /", "PUT /raft", "CONNECT /raft", "OPTIONS /api/v1/jobs", "HEAD /output"}

// rubbish are bodies that no node sends. A well-formed lie is none: who has the
// key is believed.
func rubbish() []string {
	return []string{
		"", "null", "[]", "{}", "0", `""`, "[null]", "[{}]", "[[]]", `{"":{}}`, "\x00", "\xff\xfe", "nonsense", "{", `{"Execution": 1e400}`, `{"Term": -1}`, `{"From": null}`,
		`[{"Kind": 99, "Term": 18446744073709551615}]`, `[{"Execution": -1, "Outcome": "success"}]`, `{"From": {"Name": "x", "ID": "x", "Addr": "127.0.0.1:1", "Cluster": "x", "Server": true}}`,
		`{"Term": 1, "Number": 1, "Orders": [{}]}`,
		strings.Repeat("[", 100_000), strings.Repeat(`{"From":`, 100_000), `"` + strings.Repeat("a", rpcBytesMax+1) + `"`,
	}
}

// Who has the key and sends rubbish, to a node as it is in use, harms nothing.
func TestPlane_Rubbish(t *testing.T) {
	t.Parallel()
	p := startServer(t, t.TempDir(), "--encrypt="+base64.StdEncoding.EncodeToString(testKey), "--log-level=debug")
	p.must("POST", "/v1/jobs", map[string]any{"name": "one", "schedule": "@manually", "executor": "shell", "executor_config": map[string]string{"command": "true"}}, nil)
	var before, after []auditView
	p.must("GET", "/v1/audit", nil, &before)
	var members []member
	p.must("GET", "/v1/members", nil, &members)
	key, err := clusterTLS(testKey)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: key}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	send := func(path, body string, header map[string]string) (status int, text string) {
		method, path, _ := strings.Cut(path, " ")
		r := &http.Request{Method: method, URL: &url.URL{Scheme: "https", Host: net.JoinHostPort(members[0].Addr, strconv.Itoa(members[0].Port)), Opaque: path}, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
		for k, v := range header {
			r.Header.Set(k, v)
		}
		resp, err := client.Do(r.WithContext(t.Context()))
		if err != nil {
			return 0, err.Error() // a body that is too large may break the connection
		}
		defer resp.Body.Close()
		doc, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return resp.StatusCode, err.Error()
		}
		return resp.StatusCode, string(doc)
	}
	var self record
	if status, text := send("POST /self", "", map[string]string{headerFormat: planeFormat}); json.Unmarshal([]byte(text), &self) != nil {
		t.Fatalf("who the node is: %d %s", status, text)
	}
	for _, path := range planePaths {
		switch path {
		case "DELETE /api/v1/jobs/one", "POST /api/v1/jobs/one": // these are no rubbish
			continue
		}
		for _, header := range []map[string]string{
			{},
			{headerFormat: planeFormat, headerCluster: self.Cluster, headerTo: self.ID},
			{headerFormat: planeFormat, headerCluster: self.Cluster, headerFinal: "\x7f", headerMessage: "{", headerActor: strings.Repeat("a", 10_000), headerRequest: "r"},
		} {
			if path == "POST /api/v1/leave" && header[headerFinal] == "" {
				continue // that is put on record
			}
			for _, body := range rubbish() {
				if status, text := send(path, body, header); status >= 500 && status != http.StatusServiceUnavailable {
					t.Errorf("%s %.40q: %d %s", path, body, status, text)
				}
			}
		}
	}
	if strings.Contains(p.log.String(), "panic") {
		t.Errorf("something panicked:\n%s", &p.log)
	}
	p.must("POST", "/v1/jobs/one", nil, nil)
	p.eventually("the job runs, as before", func() bool {
		var row jobRow
		p.must("GET", "/v1/jobs/one", nil, &row)
		return row.SuccessCount == 1
	})
	p.must("GET", "/v1/audit", nil, &after)
	if len(after) != len(before)+1 {
		t.Errorf("the audit trail has %+v, want the run alone behind %+v", after, before)
	}
	var now []member
	if p.must("GET", "/v1/members", nil, &now); len(now) != 1 {
		t.Errorf("the members are %+v", now)
	}
}

// FuzzPlane: whatever a peer sends to whichever path, nothing panics, nothing
// fails that is this node's own, and the node stays what it is.
func FuzzPlane(f *testing.F) {
	for i := range planePaths {
		for _, body := range rubbish() {
			if len(body) < 100 {
				f.Add(i, "", []byte(body))
			}
		}
	}
	f.Add(7, `{"Kind":3,"From":{"Name":"b","ID":"b"},"To":{"Name":"a","ID":"a"},"Term":3,"Prev":{"Index":9,"Term":3}}`, []byte("SQLite format 3\x00"))
	f.Add(5, "execution=1&from=-1&follow=true", []byte(nil))
	a := newPeer(f, "a", 1)
	a.log = slog.New(slog.DiscardHandler)
	a.start()
	voters(f, "a", a)
	leaderOf(f, a)
	handler := a.plane.handler()
	f.Fuzz(func(t *testing.T, i int, head string, body []byte) {
		method, path, _ := strings.Cut(planePaths[uint(i)%uint(len(planePaths))], " ")
		if method == http.MethodConnect || strings.HasPrefix(path, "/api/v1/jobs") {
			return // the API of these peers stores whatever it is sent
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // an output may be followed for ever
		defer cancel()
		r := httptest.NewRequest(method, "/", bytes.NewReader(body)).WithContext(ctx)
		r.URL.Path, r.URL.RawQuery = path, head
		a.plane.sign(r.Header, a.plane.own())
		r.Header.Set(headerMessage, head)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code >= 500 && !strings.HasPrefix(path, "/api/") {
			t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
		if !a.cluster.leading() {
			t.Error("the node leads no more")
		}
	})
}
