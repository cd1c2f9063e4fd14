package ipvs

// Counters are what the kernel counts of a virtual or a real server since it was made. They end with it: one that is made
// anew begins at 0. The kernel sums them up every 2 s, together with the Rates, so they may be as much behind; with
// net.ipv4.vs.run_estimation=0 it does not, and they stand still.
type Counters struct {
	// Conns counts the connections that were given to a real server.
	Conns uint64
	// In is what clients sent, Out what they were answered, as far as it passed through here.
	In, Out Volume
	// Rates are the kernel's estimates, 0 where it does not estimate.
	Rates Rates
}

// Volume is an amount of traffic.
type Volume struct{ Packets, Bytes uint64 }

// Rates are per second, averaged over some 8 s and renewed every 2 s.
type Rates struct {
	Conns   uint64
	In, Out Volume
}

// Counted is a virtual server and what the kernel counts of it.
type Counted struct {
	Key Key
	// Server has no Reals.
	Server   Server
	Counters Counters
	// Reals are its real servers in the kernel's order. Where they were not asked for there are none.
	Reals []CountedReal
}

// CountedReal is a real server and what the kernel counts of it.
type CountedReal struct {
	Real
	Conns
	// Persistent counts the templates that hold clients to it.
	Persistent uint32
	Counters   Counters
}
